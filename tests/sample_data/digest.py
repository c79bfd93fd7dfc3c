"""A portrait as one hash; apart from the tests, so that another process can import it quickly."""

import hashlib

from sample_data.portraits import Portrait


def digest(portrait: Portrait) -> str:
    state = hashlib.sha256(portrait.image.tobytes())
    for person in portrait.people:
        state.update(repr((person.identity, person.face, person.visible)).encode())
        for mask in (person.face_mask, person.head_mask, person.person_mask):
            state.update(mask.tobytes())
    return state.hexdigest()
