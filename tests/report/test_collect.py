"""The facts of a data set: what is measured, where each comes from, and what is missing."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import decisions, imageio
from lora_prep.dataset import Dataset
from lora_prep.decisions import Verdict
from lora_prep.journal import Entry, Journal, Stamp
from lora_prep.masks import Margin
from lora_prep.report import Facts, ImageFacts, Kind, Options, collect
from lora_prep.report.measure import sharpness
from lora_prep.types import Issue, Severity, Status
from tests.report.made import add, ellipse, embed, face, photo, record_mask, remember_faces

KINDS = [Kind(code, "Title", Severity.ERROR, "why", "fix") for code in ("I001", "M001", "C001")]


def gathered(root: Path, *issues: Issue, **options: object) -> Facts:
    dataset = Dataset.at(root, recursive=True)
    return collect(dataset, issues=issues, kinds=KINDS, options=Options(**options))


def one(facts: Facts, name: str) -> ImageFacts:
    return next(image for image in facts.images if image.name == name)


def issue(code: str, path: str) -> Issue:
    return Issue(code, Severity.ERROR, path, "is wrong", "fix")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i, name in enumerate(("a.png", "b.jpg", "c.png")):
        add(root, name, i)
    return root


def test_measures_the_mask_and_the_image(root):
    found = one(gathered(root), "a.png")
    assert (found.measured.width, found.measured.height) == (128, 96)
    assert found.measured.coverage == pytest.approx(ellipse().mean() / 255, abs=1e-4)
    assert found.measured.parts == 1
    assert found.bytes == (root / "faces" / "a.png").stat().st_size
    assert found.measured.picture.width == 128


def test_the_face_is_the_one_in_the_mask(root):
    remember_faces(root, "a.png", face(0, 39), face(45, 30), face(88, 38))
    found = one(gathered(root), "a.png").measured
    assert (found.faces, found.face_size, found.sharp_at) == (3, 30.0, "face")


def test_faces_of_another_file_do_not_count(root):
    remember_faces(root, "a.png", face())
    (root / "faces" / "a.png").write_bytes(imageio.encode_image(photo(9), "png"))
    found = one(gathered(root), "a.png").measured
    assert (found.faces, found.face_size, found.sharp_at) == (None, None, "mask")


def test_the_face_most_like_the_reference_is_measured(root):
    embed(root, {"a.png": [(0.2, 1), (0.8, 1)], "b.jpg": [(0.1, 1 << 40)]}, faceless=("c.png",))
    facts = gathered(root)
    assert one(facts, "a.png").similarity == pytest.approx(0.8, abs=1e-3)
    assert one(facts, "b.jpg").similarity == pytest.approx(0.1, abs=1e-3)
    assert one(facts, "c.png").similarity is None
    assert one(facts, "c.png").measured.faces == 0
    assert one(facts, "a.png").measured.faces == 2
    assert facts.people.reference == "a.png"
    assert facts.people.threshold == 0.28


def test_near_duplicates_are_grouped(root):
    for name in ("d.png", "e.png"):
        add(root, name)
    far = 0xFFFF_0000_FFFF_0000
    rows = {"a.png": 0, "b.jpg": 1, "c.png": far, "d.png": 3, "e.png": far + 1}
    embed(root, {name: [(0.9, bits)] for name, bits in rows.items()})
    groups = gathered(root).people.twins
    assert [list(g.images) for g in groups] == [["a.png", "b.jpg", "d.png"], ["c.png", "e.png"]]
    assert groups[0].similarity > 0.99


def test_damaged_embeddings_are_told(root):
    (root / "embeddings.safetensors").write_bytes(b"nonsense")
    assert any("no safetensors file" in line for line in gathered(root).missing)


def test_sharpness_falls_with_blur_and_not_with_size():
    fine = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    box = (0, 0, 256, 256)
    values = [sharpness(cv2.GaussianBlur(fine, (0, 0), s), box) for s in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    soft = cv2.GaussianBlur(fine, (0, 0), 2)
    larger = cv2.resize(soft, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    assert sharpness(larger, (0, 0, 1024, 1024)) == pytest.approx(sharpness(soft, box), rel=0.2)
    assert sharpness(fine, (300, 0, 400, 50)) is None


def test_states_say_where_a_mask_comes_from(root):
    for name in ("a.png", "b.jpg", "c.png"):
        record_mask(root, name)
    add(root, "d.png", mask=False)
    add(root, "e.png")
    (root / "masks" / "b.png").write_bytes(imageio.encode_mask(ellipse(radius=0.3)))
    (root / "faces" / "c.png").write_bytes(imageio.encode_image(photo(8), "png"))
    states = {image.name: image.state for image in gathered(root).images}
    assert states == {
        "a.png": "made",
        "b.jpg": "by hand",
        "c.png": "stale",
        "d.png": "no mask",
        "e.png": "by hand",
    }


def test_decisions_of_the_review_are_told(root):
    for name in ("a.png", "b.jpg"):
        record_mask(root, name)
    dataset = Dataset.at(root)
    for name, verdict in (("a.png", Verdict.ACCEPTED), ("b.jpg", Verdict.REJECTED)):
        decisions.decide(dataset, dataset.sample(name), verdict)
    facts = gathered(root)
    assert [image.state for image in facts.images] == ["accepted", "rejected", "by hand"]
    assert [image.decided for image in facts.images] == ["accepted", "rejected", ""]


def test_decisions_that_cannot_be_read_are_told(root):
    (root / ".lora-prep").mkdir()
    (root / ".lora-prep" / "review.json").write_text("{")
    facts = gathered(root)
    assert len(facts.images) == 3
    assert any("review.json" in line for line in facts.missing)


def test_the_erosion_is_that_of_the_journal_else_the_one_given(root):
    record_mask(root, "a.png", erode="10%")
    record_mask(root, "b.jpg")
    facts = gathered(root, erosion=Margin.parse("3%"))
    a, b, c = facts.images
    assert (a.erosion, a.erosion_recorded) == ("10%", True)
    assert (b.erosion, b.erosion_recorded) == ("3%", False)
    assert c.erosion == c.measured.picture.wider == ""  # of a mask drawn by hand nobody knows
    assert a.measured.before > b.measured.before > b.measured.coverage
    assert a.measured.kept < b.measured.kept < 1
    assert a.measured.picture.wider


def test_issues_of_masks_and_captions_are_the_images(root):
    facts = gathered(
        root,
        issue("M001", "masks/a.png"),
        issue("C001", "faces/a.txt"),
        issue("I001", "faces/b.jpg"),
        issue("I001", "faces"),
    )
    codes = {image.name: [i.code for i in image.issues] for image in facts.images}
    assert codes == {"a.png": ["M001", "C001"], "b.jpg": ["I001"], "c.png": []}
    assert [(kind.code, len(found)) for kind, found in facts.kinds] == [
        ("I001", 2),
        ("C001", 1),
        ("M001", 1),
    ]


def test_images_with_issues_come_first_where_not_all_fit(root):
    for i in range(10):
        add(root, f"z{i}.png")
    facts = gathered(root, issue("I001", "faces/z7.png"), max_images=3)
    shown = [image.name for image in facts.images if image.shown]
    assert "z7.png" in shown
    assert len(shown) == 3
    assert len(facts.images) == 13
    assert all((image.measured.picture is not None) == image.shown for image in facts.images)
    assert all(image.measured.coverage is not None for image in facts.images)
    assert any("10 images are counted" in line for line in facts.missing)


def test_damage_is_told_and_the_rest_goes_on(root):
    (root / "faces" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    (root / "faces" / "empty.png").touch()
    (root / "masks" / "b.png").write_bytes(b"not a mask")
    facts = gathered(root)
    assert "damaged" in one(facts, "a.png").measured.problem
    assert "empty" in one(facts, "empty.png").measured.problem
    assert "not an image" in one(facts, "b.jpg").measured.mask_problem
    assert one(facts, "b.jpg").measured.picture.shade == b""
    assert one(facts, "c.png").measured.coverage
    assert any("2 images cannot be read" in line for line in facts.missing)


def test_a_mask_of_another_size_is_stretched_and_told(root):
    (root / "masks" / "a.png").write_bytes(imageio.encode_mask(ellipse((40, 40))))
    found = one(gathered(root), "a.png").measured
    assert found.mask_size == (40, 40)
    assert found.picture.line
    assert found.sharp_at == "image"


def test_nothing_but_images(tmp_path):
    add(tmp_path, "a.png", mask=False)
    facts = gathered(tmp_path)
    said = " ".join(facts.missing)
    for command in ("masks", "embed", "detect", "captions", "augment", "priors"):
        assert f"lora-prep {command}" in said
    assert facts.images[0].state == "no mask"


def test_a_journal_cannot_bring_other_files_into_the_report(root, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(imageio.encode_image(photo(5), "png"))
    inside = root / "augmented" / "images" / "a-a000.png"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(secret.read_bytes())
    with Journal(root / ".lora-prep" / "augment.jsonl") as journal:
        for i, path in enumerate(("../secret.png", "augmented/images/a-a000.png")):
            stamp = Stamp.of_input(secret.read_bytes(), secret.stat())
            info = {"parent": "faces/a.png", "variant": i, "kept": 1.0}
            journal.append(
                Entry(f"faces/a.png#{i}", Status.DONE, "f", {}, {path: stamp}, info=info)
            )
    (parent,) = gathered(root).augmented.parents
    assert [variant.path for variant in parent.variants] == ["augmented/images/a-a000.png"]
