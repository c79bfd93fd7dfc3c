"""`lora-prep detect` through its command line, with the embedded detector on drawn portraits."""

import json
import shutil

from lora_prep.faces import FaceRecord
from lora_prep.types import Face


def overlap(box: list[float], face: Face) -> float:
    x0, y0 = max(box[0], face.box[0]), max(box[1], face.box[1])
    x1, y1 = min(box[2], face.box[2]), min(box[3], face.box[3])
    both = max(0.0, x1 - x0) * max(0.0, y1 - y0)
    return both / ((box[2] - box[0]) * (box[3] - box[1]) + face.area - both)


def test_faces_are_found_where_they_are(faces, portraits, lora_prep):
    result = lora_prep("detect", faces, "--preset", "embedded", "--json")
    items = {item["key"]: item for item in json.loads(result.stdout)["items"]}
    found = 0
    for i, portrait in enumerate(portraits):
        item = items[f"faces/p{i:02}.{'jpg' if i % 2 else 'png'}"]
        assert item["info"]["size"] == [320, 320]
        boxes = [face["box"] for face in item["info"]["faces"]]
        found += any(overlap(box, portrait.people[0].face) > 0.4 for box in boxes)
    assert found >= 8


def test_the_record_says_where_it_comes_from(faces, lora_prep):
    lora_prep("detect", faces, "--preset", "embedded")
    record = FaceRecord.from_bytes(
        (faces.parent / ".lora-prep/faces/faces/p00.png.json").read_bytes()
    )
    assert record.detector.startswith("cascade")
    assert (record.width, record.height) == (320, 320)


def test_the_table_is_the_same_when_nothing_is_new(faces, lora_prep):
    first = lora_prep("detect", faces, "--preset", "embedded").stdout.splitlines()
    second = lora_prep("detect", faces, "--preset", "embedded").stdout.splitlines()
    assert first[:-1] == second[:-1]
    assert first[0].split()[:4] == ["image", "size", "face", "score"]
    assert "10 fresh" in second[-1]


def test_faces_that_masks_found_are_listed_without_detecting_again(faces, lora_prep, monkeypatch):
    lora_prep("masks", faces, "--preset", "embedded", code=None)

    def never(self, image):
        raise AssertionError("detected again")

    monkeypatch.setattr("lora_prep.backends.cascade.CascadeDetector.detect", never)
    said = lora_prep("detect", faces, "--preset", "embedded").stdout.splitlines()
    assert "10 made" in said[-1]
    assert int(said[-2].split()[0]) >= 8


def test_image_folders_beside_each_other_keep_their_own_faces(faces, lora_prep):
    other = faces.parent / "others"
    shutil.copytree(faces, other)
    (other / "p00.png").write_bytes((faces / "p02.png").read_bytes())
    for folder in (faces, other, faces, other):
        result = lora_prep("detect", folder, "--preset", "embedded", "--json")
    assert json.loads(result.stdout)["counts"]["fresh"] == 10
