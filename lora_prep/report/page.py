"""The page: one HTML file with everything in it, which asks nothing of the network.

Names and captions are text: the template escapes whatever it prints, data goes through `tojson`,
the script sets `textContent`, and the page's own policy (Content-Security-Policy) lets nothing run
but that one script, and nothing be loaded but pictures inside the file.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_prep import __version__
from lora_prep.report.collect import Facts, ImageFacts
from lora_prep.report.histogram import HEIGHT, WIDTH, Histogram, histogram
from lora_prep.report.made import spread
from lora_prep.report.thumbnails import Picture
from lora_prep.status import State
from lora_prep.types import Json, Severity

if TYPE_CHECKING:
    from markupsafe import Markup

HERE = Path(__file__).parent

MARK = '<meta name="generator" content="lora-prep report">'
"""What tells a page of ours."""

CHUNK = 40
"""Pictures in a block of the page: a block is read when one of its pictures comes into view."""

ERODED = 12
"""Images that are shown before and after the erosion."""

LISTED = 50
"""Issues of a kind that are listed in full."""


@dataclass
class Album:
    """The pictures of a page, numbered as they come."""

    pictures: list[Picture] = field(default_factory=list)

    def add(self, picture: Picture | None) -> int | None:
        """The number of a picture."""
        if picture is None:
            return None
        self.pictures.append(picture)
        return len(self.pictures) - 1

    @property
    def bytes(self) -> int:
        """What the pictures take in the page, about."""
        return sum(4 * (len(p.jpeg) + len(p.shade)) // 3 + 60 for p in self.pictures)

    def chunks(self) -> Iterator[list[Json]]:
        """The pictures as JSON values, a block at a time."""
        for start in range(0, len(self.pictures), CHUNK):
            yield [picture.to_json() for picture in self.pictures[start : start + CHUNK]]


def render(facts: Facts, when: datetime) -> bytes:
    """The page as UTF-8, with the date `when` on it."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=jinja2.select_autoescape(default_for_string=True),
        undefined=jinja2.StrictUndefined,
        finalize=lambda v: readable(v) if type(v) is str else v,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = size_text
    environment.filters["ticked"] = ticked
    style, script = ((HERE / name).read_text("utf-8") for name in ("style.css", "script.js"))
    album = Album()
    numbers = {image.name: album.add(image.measured.picture) for image in facts.images}
    shown = [_image(image, numbers[image.name]) for image in facts.images if image.shown]
    data = {
        "images": shown,
        "kinds": {
            kind.code: {"title": kind.title, "severity": kind.severity, "fix": kind.fix}
            for kind, _ in facts.kinds
        },
        "chunk": CHUNK,
    }
    made = [
        (
            parent,
            numbers.get(parent.name),
            [(v, album.add(v.picture)) for v in parent.variants],
        )
        for parent in facts.augmented.parents
    ]
    priors = [(prior, album.add(prior.picture)) for prior in facts.priors.shown]
    text = environment.get_template("template.html").render(
        facts=facts,
        version=__version__,
        when=when.strftime("%Y-%m-%d %H:%M"),
        mark=Markup(MARK),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        columns=[state for state in State if any(step.counts[state] for step in facts.steps)],
        errors=facts.severities[Severity.ERROR],
        warnings=facts.severities[Severity.WARNING],
        listed=LISTED,
        histograms=[h for h in histograms(facts) if h],
        width=WIDTH,
        height=HEIGHT,
        eroded=list(_eroded(facts, numbers)),
        twins=[(t, [(name, numbers.get(name)) for name in t.images]) for t in facts.people.twins],
        augmented=made,
        priors=priors,
        data=data,
        album=album,
    )
    return text.encode("utf-8", "replace")


def readable(text: str) -> str:
    """Text with what cannot be seen written out: control codes, changes of the writing's direction,
    bytes of file names that are no text. Ends of lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def ticked(text: str) -> "Markup":
    """Text as HTML, with what stands between two backticks as code; all else escaped."""
    from markupsafe import Markup

    parts = readable(text).split("`")
    if len(parts) % 2 == 0:
        return Markup("{}").format(readable(text))
    pieces = (("<code>{}</code>" if i % 2 else "{}") for i in range(len(parts)))
    return Markup("").join(Markup(p).format(t) for p, t in zip(pieces, parts, strict=True))


def size_text(count: float) -> str:
    """A number of bytes."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("bytes", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def histograms(facts: Facts) -> Iterator[Histogram | None]:
    """Of coverage, face size, similarity and sharpness."""
    looked = [image.measured for image in facts.images]
    similar = [i.similarity for i in facts.images if i.similarity is not None]
    threshold = facts.people.threshold
    yield histogram(
        "Coverage",
        "share of the image that is trained on",
        [m.coverage for m in looked if m.coverage is not None],
        ".1%",
    )
    yield histogram(
        "Face size",
        "shorter side of the subject's face, in pixels",
        [m.face_size for m in looked if m.face_size is not None],
        ".0f",
    )
    yield histogram(
        "Similarity",
        "cosine to the reference of the face most like it",
        similar,
        ".2f",
        mark=threshold,
        mark_label="" if threshold is None else f"below {threshold:g}: another person?",
    )
    yield histogram(
        "Sharpness",
        "variance of the Laplacian at the face, on a log scale",
        [m.sharpness for m in looked if m.sharpness is not None],
        ",.1f",
        scale="log",
    )


def _image(image: ImageFacts, number: int | None) -> dict[str, Json]:
    """An image of the gallery, for the script."""
    found = image.measured
    return {
        "name": readable(image.name),
        "picture": number,
        "width": found.width,
        "height": found.height,
        "bytes": size_text(image.bytes),
        "state": image.state,
        "decided": image.decided,
        "coverage": found.coverage,
        "before": found.before,
        "kept": found.kept,
        "erosion": image.erosion,
        "recorded": image.erosion_recorded,
        "mask": found.mask_size,
        "parts": found.parts,
        "faces": found.faces,
        "face": found.face_size,
        "sharpness": found.sharpness,
        "sharpAt": found.sharp_at,
        "similarity": image.similarity,
        "caption": None if image.caption is None else readable(image.caption),
        "captionFault": image.caption_fault,
        "problem": readable(found.problem),
        "maskProblem": readable(found.mask_problem),
        "issues": [[issue.code, readable(issue.message)] for issue in image.issues],
    }


def _eroded(
    facts: Facts, numbers: Mapping[str, int | None]
) -> Iterator[tuple[ImageFacts, int | None]]:
    """Images before and after the erosion."""
    found = {
        image.name: image
        for image in facts.images
        if image.measured.picture and image.measured.picture.wider
    }
    for name in spread(list(found), ERODED):
        yield found[name], numbers[name]


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_json(facts: Facts) -> dict[str, Any]:
    """The facts for `--json`: no pictures."""
    return {
        "images": [
            {**_image(image, None), "name": image.name, "key": image.key, "bytes": image.bytes}
            for image in facts.images
        ],
        "states": dict(facts.states),
        "errors": facts.severities[Severity.ERROR],
        "warnings": facts.severities[Severity.WARNING],
        "issues": [
            {"code": issue.code, "path": issue.path, "message": issue.message, "fix": issue.fix}
            for _, issues in facts.kinds
            for issue in issues
        ],
        "identity": {
            "model": facts.people.model,
            "reference": facts.people.reference,
            "min_similarity": facts.people.threshold,
            "unlike_below": facts.people.unlike_below,
        },
        "near_duplicates": [
            {"images": list(t.images), "similarity": t.similarity} for t in facts.people.twins
        ],
        "augmented": {"images": facts.augmented.images, "variants": facts.augmented.variants},
        "priors": facts.priors.count,
        "missing": list(facts.missing),
    }


def is_ours(head: bytes) -> bool:
    """Whether a file that begins so is a report."""
    return MARK.encode() in head
