"""`lora-prep embed` through its command line, with the tiny pack's learned weights."""

import json
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.backends.insightface import InsightFaceDetector
from lora_prep.dataset import Dataset
from lora_prep.embeddings import read_embeddings
from lora_prep.errors import ItemError
from lora_prep.stages.embed import EmbedFaces, record_path
from sample_data.portraits import draw_portrait
from tests.fakes.cell_recogniser import answer, write_recogniser
from tests.fakes.red_square_yunet import write_yunet

TINY = Path(__file__).parents[1] / "assets" / "tiny_faces"
MODELS = ("--face-model", str(TINY), "--det-size", "320")
EASY = {"size": (256, 256), "scale": (0.4, 0.55), "max_tilt": 5.0, "max_yaw": 5.0, "people": 1}
SUBJECT, STRANGER = 7, 51


def draw(path: Path, seed: int, who: int) -> None:
    image = draw_portrait(seed, identity=who, **EASY).image
    path.write_bytes(imageio.encode_image(image, "png"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Five pictures of the subject, one of somebody else, a copy, a wall; and two references."""
    root = tmp_path_factory.mktemp("drawn")
    folder = root / "faces"
    folder.mkdir()
    for i in range(5):
        draw(folder / f"p{i}.png", 200 + i, SUBJECT)
    draw(folder / "stranger.png", 300, STRANGER)
    copy = imageio.decode_image((folder / "p2.png").read_bytes())
    (folder / "p2 copy.jpg").write_bytes(imageio.encode_image(copy, "jpeg"))
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 300, 3), 128, np.uint8))
    draw(root / "me.png", 401, SUBJECT)
    draw(root / "you.png", 402, STRANGER)
    return root


@pytest.fixture(scope="module")
def embedded(drawn, tmp_path_factory):
    """The same after a first run of `lora-prep embed`."""
    from click.testing import CliRunner

    from lora_prep.cli import main

    root = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("embedded") / "data"))
    result = CliRunner().invoke(main, ["embed", str(root / "faces"), *MODELS])
    assert result.exit_code == 0, result.output
    (root / "said").write_text(result.output)
    return root


@pytest.fixture
def data(embedded, tmp_path):
    """A copy of it to work on."""
    return Path(shutil.copytree(embedded, tmp_path / "data"))


def rows_of(root: Path):
    return read_embeddings(root / "embeddings.safetensors")


def document(result):
    return json.loads(result.stdout)


def test_rows_are_those_of_faceanalysis(embedded):
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(TINY), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_thresh=0.5, det_size=(320, 320))
    rows = rows_of(embedded)
    for name in ("p0.png", "stranger.png"):
        image = imageio.decode_image((embedded / "faces" / name).read_bytes())
        (face,) = app.get(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        row = rows.names.index(name)
        assert rows.vectors[row] == pytest.approx(face.normed_embedding, abs=1e-5)
        assert rows.norms[row] == pytest.approx(face.embedding_norm, abs=1e-4)
        assert rows.boxes[row] == pytest.approx(face.bbox, abs=1e-4)
        assert rows.landmarks[row] == pytest.approx(face.kps, abs=1e-4)


def test_the_file_says_what_it_was_made_with(embedded):
    rows = rows_of(embedded)
    about = rows.metadata
    assert about["model"] == "arcface tiny_faces/rec_tiny.onnx"
    assert len(about["model_sha256"]) == 64
    assert about["alignment"] == "insightface-norm_crop"
    assert "det_tiny.onnx" in about["detector"]
    assert about["license"].startswith("unknown")
    assert about["reference_kind"] == "medoid"
    assert about["date"].startswith("20")
    assert rows.faceless == ("wall.png",)
    assert len(rows) == 7


def test_the_report_names_who_does_not_belong_and_what_is_there_twice(embedded):
    said = (embedded / "said").read_text()
    assert "6 of 7 images show that person" in said
    others = said.split("not the same person? (below 0.28):\n")[1]
    assert "faces/stranger.png (face 1)" in others.splitlines()[0]
    twice = said.split("nearly the same picture")[1].splitlines()[1]
    assert twice.split(maxsplit=1)[1] == "faces/p2 copy.jpg  faces/p2.png"
    assert "warning  faces/wall.png: no face was found by insightface" in said


def test_a_reference_decides_who_is_meant(data, lora_prep):
    mine = document(
        lora_prep("embed", data / "faces", *MODELS, "--reference", data / "me.png", "--json")
    )
    assert mine["reference"] == [{"image": "me.png", "face": 0}]
    assert mine["metadata"]["reference_kind"] == "given"
    assert [b["image"] for b in mine["identity"]["not_the_same_person"]] == ["faces/stranger.png"]
    assert mine["counts"]["done"] == 1, "the reference alone is new"
    yours = document(
        lora_prep("embed", data / "faces", *MODELS, "--reference", data / "you.png", "--json")
    )
    assert len(yours["identity"]["not_the_same_person"]) == 6
    own = data / "faces" / "p1.png"
    given = document(lora_prep("embed", data / "faces", *MODELS, "--reference", own, "--json"))
    assert given["counts"]["done"] == 0, "a picture of the set is not looked at again"
    rows = rows_of(data)
    assert rows.similarities[rows.names.index("p1.png")] == pytest.approx(1, abs=1e-5)
    both = document(
        lora_prep(
            "embed", data / "faces", *MODELS, "--json",
            "--reference", data / "you.png", "--reference", data / "me.png",
        )
    )  # fmt: skip
    assert both["identity"]["not_the_same_person"] == []


def test_a_reference_that_was_given_is_kept_until_another_one_is(data, lora_prep, monkeypatch):
    me, you = data / "me.png", data / "you.png"
    monkeypatch.chdir(data)
    lora_prep("embed", "faces", *MODELS, "--reference", "me.png")
    meant = rows_of(data).metadata["reference_sha256"]
    said = lora_prep("embed", "faces", *MODELS).output
    assert "reference: me.png (face 1), as last time; `--reference medoid` takes" in said
    assert rows_of(data).metadata["reference_sha256"] == meant
    said = lora_prep("embed", "faces", *MODELS, "--reference", you).output
    assert "reference: you.png (face 1); last time it was me.png" in said
    assert "only 1 of 7 images show the reference: is it a picture of the person meant?" in said
    you.unlink()
    said = lora_prep("embed", "faces", *MODELS, code=2).output
    assert "you.png, which was given last time, is gone" in said
    said = lora_prep(
        "embed", "faces", *MODELS, "--reference", "medoid", "--reference", me, code=2
    ).output
    assert "medoid goes without others" in said
    said = lora_prep("embed", "faces", *MODELS, "--reference", "medoid").output
    assert "the most typical face; --reference IMG takes another; last time it was you.png" in said
    assert rows_of(data).metadata["reference_kind"] == "medoid"
    assert "last time" not in lora_prep("embed", "faces", *MODELS).output


def test_references_of_the_configuration_lie_beside_it(data, lora_prep, monkeypatch, tmp_path):
    (data / "lora-prep.toml").write_text('[embed]\nreference = ["me.png"]\n')
    monkeypatch.chdir(tmp_path)
    found = document(lora_prep("embed", "data/faces", *MODELS, "--json"))
    assert found["reference"] == [{"image": "me.png", "face": 0}]
    (data / "lora-prep.toml").write_text('[embed]\nreference = ["medoid"]\n')
    found = document(lora_prep("embed", "data/faces", *MODELS, "--json"))
    assert found["metadata"]["reference_kind"] == "medoid"


def test_a_typical_face_that_hardly_any_image_shows_is_doubted(data, lora_prep):
    for name in ("p0.png", "p1.png", "p3.png", "p4.png"):
        draw(data / "faces" / name, 310, 60 + int(name[1]))
    said = lora_prep("embed", data / "faces", *MODELS, "--quiet").output
    assert "images show the reference: give one with --reference IMG" in said


def test_an_interrupt_before_the_first_image_makes_no_file(drawn, tmp_path, lora_prep, monkeypatch):
    root = Path(shutil.copytree(drawn, tmp_path / "data"))
    items = EmbedFaces.items

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGINT)
        yield from items(self)

    monkeypatch.setattr(EmbedFaces, "items", interrupted)
    said = lora_prep("embed", root / "faces", *MODELS, code=130).output
    assert "embeddings.safetensors: not made yet, since the run was interrupted" in said
    assert "embed: nothing done in" in said
    assert not (root / "embeddings.safetensors").exists()


def test_a_reference_without_a_face_is_refused(data, lora_prep):
    before = (data / "embeddings.safetensors").read_bytes()
    wall = shutil.copy(data / "faces/wall.png", data / "nobody.png")
    said = lora_prep("embed", data / "faces", *MODELS, "--reference", wall, code=2).output
    assert "there is no face in it" in said
    assert (data / "embeddings.safetensors").read_bytes() == before


def test_nothing_is_done_again_and_the_file_is_left(data, lora_prep, monkeypatch):
    path = data / "embeddings.safetensors"
    before = (path.read_bytes(), path.stat().st_mtime_ns)

    def never(self):
        raise AssertionError("the models were loaded")

    monkeypatch.setattr("lora_prep.stages.embed.EmbedFaces.open", never)
    assert document(lora_prep("embed", data / "faces", *MODELS, "--json"))["counts"]["fresh"] == 8
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_what_changed_is_embedded_again_and_what_is_gone_leaves(data, lora_prep):
    old = rows_of(data)
    folder = data / "faces"
    shutil.copy(data / "you.png", folder / "p3.png")
    (folder / "p4.png").unlink()
    draw(folder / "new.png", 205, SUBJECT)
    dataset = Dataset.at(folder)
    gone = record_path(dataset, dataset.sample("p4.png"))
    assert gone.exists()
    found = document(lora_prep("embed", folder, *MODELS, "--json"))
    assert (found["counts"]["done"], found["counts"]["fresh"]) == (2, 6)
    rows = rows_of(data)
    assert set(rows.names) == set(old.names) - {"p4.png"} | {"new.png"}
    assert not gone.exists(), "vectors of a deleted image are deleted"
    changed = old.vectors[old.names.index("p3.png")] @ rows.vectors[rows.names.index("p3.png")]
    assert changed < 0.5
    kept = rows.vectors[rows.names.index("p0.png")]
    assert np.array_equal(kept, old.vectors[old.names.index("p0.png")])


def test_the_same_bytes_whatever_was_done_before(data, lora_prep):
    first = rows_of(data)
    shutil.rmtree(data / ".lora-prep")
    lora_prep("detect", data / "faces", *MODELS)
    lora_prep("embed", data / "faces", *MODELS)
    detected = rows_of(data)
    lora_prep("embed", data / "faces", *MODELS, "--force", "--batch-size", 3, "--threads", 1)
    for field in ("boxes", "landmarks", "scores", "vectors", "norms", "similarities"):
        assert np.array_equal(getattr(first, field), getattr(detected, field)), field
        assert np.array_equal(getattr(first, field), getattr(rows_of(data), field)), field


def test_detected_faces_are_used_and_kept(data, lora_prep, monkeypatch):
    for path in (data / ".lora-prep").iterdir():
        if path.name != "faces":
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def never(self, image):
        raise AssertionError("detected again")

    monkeypatch.setattr("lora_prep.backends.insightface.InsightFaceDetector.detect", never)
    assert document(lora_prep("embed", data / "faces", *MODELS, "--json"))["faces"] == 7


def test_a_broken_image_fails_alone_and_its_old_row_goes(data, lora_prep):
    path = data / "faces" / "p1.png"
    path.write_bytes(path.read_bytes()[:2000])
    result = lora_prep("embed", data / "faces", *MODELS, code=1)
    assert "failed   faces/p1.png" in result.output
    assert set(rows_of(data).names) == {
        "p0.png", "p2.png", "p2 copy.jpg", "p3.png", "p4.png", "stranger.png",
    }  # fmt: skip


def test_an_interrupted_run_leaves_what_it_has(drawn, tmp_path, lora_prep, monkeypatch):
    """Ctrl-C while the third image is looked at, then the same command again."""
    root = Path(shutil.copytree(drawn, tmp_path / "data"))
    options = ("embed", root / "faces", *MODELS, "--batch-size", 1, "--threads", 1)
    detect, seen = InsightFaceDetector.detect, []

    def interrupted(self, image):
        seen.append(image)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return detect(self, image)

    monkeypatch.setattr(InsightFaceDetector, "detect", interrupted)
    lora_prep(*options, code=130)
    half = rows_of(root)
    assert 0 < len(half) < 7
    rest = document(lora_prep(*options, "--json"))
    assert rest["counts"]["fresh"] == len(half) + len(half.faceless)
    assert len(rows_of(root)) == 7


@pytest.mark.parametrize("other", [("--det-size", "352"), ("--reference", "me.png")])
def test_an_interrupted_run_keeps_the_file_that_it_cannot_make_yet(
    other, data, lora_prep, monkeypatch
):
    """By another detector, or with a reference that is not looked at yet."""
    path = data / "embeddings.safetensors"
    before = path.read_bytes()
    monkeypatch.chdir(data)
    options = ("embed", data / "faces", *MODELS, *other, "--batch-size", 1, "--threads", 1)
    detect = InsightFaceDetector.detect

    def interrupted(self, image):
        os.kill(os.getpid(), signal.SIGINT)
        if other[0] == "--reference":
            raise ItemError("not yet", code="not-yet")
        return detect(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(InsightFaceDetector, "detect", interrupted)
        said = lora_prep(*options, code=130).output
    assert "left as it was" in said
    assert path.read_bytes() == before
    lora_prep(*options)
    assert path.read_bytes() != before
    assert len(rows_of(data)) == 7


class TestRefused:
    def test_a_reference_that_is_not_there(self, drawn, lora_prep):
        said = lora_prep("embed", drawn / "faces", *MODELS, "--reference", "nobody.jpg", code=2)
        assert "--reference: there is no file nobody.jpg" in said.output

    def test_a_file_in_the_way_that_is_somebody_elses(self, data, lora_prep):
        path = data / "embeddings.safetensors"
        path.write_bytes(b"my notes")
        said = lora_prep("embed", data / "faces", *MODELS, code=2).output
        assert "replace it with --force" in said
        assert path.read_bytes() == b"my notes"
        lora_prep("embed", data / "faces", *MODELS, "--force", "--dry-run")
        assert path.read_bytes() == b"my notes"

    def test_the_file_of_another_folder(self, data, lora_prep):
        shutil.copytree(data / "faces", data / "others")
        said = lora_prep("embed", data / "others", *MODELS, code=2).output
        assert "has the faces of the folder faces" in said

    def test_a_detector_without_landmarks(self, drawn, lora_prep):
        for models in (("--preset", "embedded"), ("--detector", "cascade")):
            said = lora_prep("embed", drawn / "faces", *models, code=2).output
            assert "no landmarks" in said
            assert "--detector yunet" in said

    def test_a_licence_that_nobody_accepted(self, drawn, lora_prep, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
        yunet = write_yunet(tmp_path / "yunet.onnx")
        said = lora_prep(
            "embed", drawn / "faces", "--detector", "yunet", "--face-model", yunet, code=2
        ).output
        assert "non-commercial" in said
        assert "--recogniser sface" in said
        assert "--preset embedded, but not for `embed`" in said


def test_images_without_any_face_give_a_file_without_rows(tmp_path, lora_prep):
    folder = tmp_path / "faces"
    folder.mkdir()
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 300, 3), 128, np.uint8))
    said = lora_prep("embed", folder, *MODELS).output
    assert "0 faces in 0 images" in said
    rows = rows_of(tmp_path)
    assert (len(rows), rows.faceless, rows.similarities) == (0, ("wall.png",), None)


def test_a_dry_run_writes_nothing(drawn, tmp_path, lora_prep):
    root = Path(shutil.copytree(drawn, tmp_path / "data", ignore=shutil.ignore_patterns(".*")))
    assert "8 to make" in lora_prep("embed", root / "faces", *MODELS, "--dry-run").output
    assert sorted(p.name for p in root.iterdir()) == ["faces", "me.png", "you.png"]


def test_yunet_and_sface_together_with_no_insightface(tmp_path, lora_prep):
    """OpenCV's own classes, with models whose answers are known: a red square is a face."""
    folder = tmp_path / "faces"
    folder.mkdir()
    image = np.full((320, 320, 3), 90, np.uint8)
    image[128:192, 128:192] = (255, 0, 0)
    (folder / "red.png").write_bytes(imageio.encode_image(image, "png"))
    result = lora_prep(
        "embed", folder, "--json",
        "--detector", "yunet", "--face-model", write_yunet(tmp_path / "yunet.onnx"),
        "--recogniser", "sface",
        "--recogniser-model", write_recogniser(tmp_path / "sface.onnx"),
    )  # fmt: skip
    found = document(result)
    assert (found["faces"], found["identity"]["min_similarity"]) == (1, 0.363)
    rows = rows_of(tmp_path)
    expected = answer(np.full((112, 112, 3), (255, 0, 0), np.uint8))
    middle = rows.vectors[0].reshape(3, 4, 4)[:, 1:3, 1:3] * rows.norms[0]
    assert middle == pytest.approx(expected.reshape(3, 4, 4)[:, 1:3, 1:3], abs=3)
