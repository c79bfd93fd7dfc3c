from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_prep import imageio
from lora_prep.embeddings import Embeddings, read_embeddings
from lora_prep.errors import DatasetError
from lora_prep.training.dataset import PreparedFolder
from lora_prep.training.identity import (
    embed_faces,
    evaluate_identity,
    load_recogniser,
    read_reference,
)
from lora_prep.types import Face, Image
from sample_data.portraits import Portrait

TINY = Path("tests/assets/tiny_faces/rec_tiny.onnx")


@pytest.fixture
def written(portraits: list[Portrait], tmp_path: Path) -> Path:
    """What `lora-prep embed`'s own recogniser gives, on disk."""
    from lora_prep.backends import RecogniserSpec
    from lora_prep.backends.arcface import ArcFaceRecogniser, card

    spec = RecogniserSpec("arcface", str(TINY))
    model, about = ArcFaceRecogniser(spec), card(spec)
    faces = [p.people[0].face for p in portraits[:4]]
    crops = [model.crop(p.image, f) for p, f in zip(portraits, faces, strict=False)]
    rows = model.vectors(crops)
    norms = np.linalg.norm(rows, axis=1)
    found = Embeddings(
        names=tuple(f"p{i}.png" for i in range(4)),
        faces=np.zeros(4, np.int32),
        boxes=np.array([f.box for f in faces], np.float32),
        landmarks=np.array([f.landmarks for f in faces], np.float32),
        scores=np.ones(4, np.float32),
        vectors=(rows / norms[:, None]).astype(np.float32),
        norms=norms.astype(np.float32),
        sha256=("0" * 64,) * 4,
        metadata={
            "model": about.model,
            "model_sha256": about.sha256,
            "alignment": about.alignment,
        },
    )
    path = tmp_path / "embeddings.safetensors"
    path.write_bytes(found.to_bytes())
    return path


def pixels(portrait: Portrait) -> torch.Tensor:
    return torch.from_numpy(np.array(portrait.image)).permute(2, 0, 1)[None].float()


def test_the_loss_and_embed_see_the_same_face(portraits: list[Portrait], written: Path) -> None:
    recogniser, found = load_recogniser(TINY), read_embeddings(written)
    for i, portrait in enumerate(portraits[:4]):
        landmarks = torch.tensor(found.landmarks[i])[None]
        for antialias, least in ((False, 0.9995), (True, 0.98)):
            vector = embed_faces(recogniser, pixels(portrait), landmarks, antialias=antialias)[0]
            assert float(vector @ torch.tensor(found.vectors[i])) > least


def test_reference_is_the_unit_mean(written: Path) -> None:
    recogniser, found = load_recogniser(TINY), read_embeddings(written)
    mean = found.vectors.mean(0)
    reference = read_reference(written, recogniser)
    np.testing.assert_allclose(reference.numpy(), mean / np.linalg.norm(mean), atol=1e-6)
    one = read_reference(written, recogniser, ["p2.png"])
    np.testing.assert_allclose(one.numpy(), found.vectors[2], atol=1e-6)
    with pytest.raises(DatasetError, match="no face"):
        read_reference(written, recogniser, ["absent.png"])


def test_references_of_another_model_or_alignment_are_refused(written: Path) -> None:
    recogniser, found = load_recogniser(TINY), read_embeddings(written)
    for key, message in (("model_sha256", "different models"), ("alignment", "alignment")):
        other = replace(found, metadata={**found.metadata, key: "f" * 64})
        written.write_bytes(other.to_bytes())
        with pytest.raises(DatasetError, match=message):
            read_reference(written, recogniser)


def test_what_the_command_embed_wrote_is_what_the_loss_computes(embedded: Path) -> None:
    """`lora-prep embed` with its own detector, decoding, alignment and ONNX Runtime."""
    path = embedded / "embeddings.safetensors"
    recogniser, found = load_recogniser(TINY), read_embeddings(path)
    assert len(found.names) >= 8
    for row, name in enumerate(found.names):
        image = imageio.decode_image((embedded / "faces" / name).read_bytes())
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        landmarks = torch.tensor(found.landmarks[row])[None]
        vector = embed_faces(recogniser, pixels, landmarks, antialias=False)[0]
        assert float(vector @ torch.tensor(found.vectors[row])) > 0.9995
    reference = read_reference(path, recogniser)
    folder = PreparedFolder.at(embedded, resolution=64, missing_mask="ones")
    np.testing.assert_allclose(reference.numpy(), folder.reference, atol=1e-6)


def test_of_several_faces_the_one_like_the_subject_is_taken(written: Path) -> None:
    """Likeness before the detector's score, and the score where there is no likeness."""
    found = read_embeddings(written)
    faces = replace(
        found,
        names=("group.png",) * 4,
        faces=np.arange(4, dtype=np.int32),
        scores=np.array([0.9, 0.8, 0.99, 0.7], np.float32),
    )
    for likeness, row in ((None, 2), (np.array([0.1, 0.8, 0.2, 0.3], np.float32), 1)):
        written.write_bytes(replace(faces, similarities=likeness).to_bytes())
        np.testing.assert_allclose(read_reference(written).numpy(), found.vectors[row], atol=1e-6)


def test_strangers_are_not_part_of_the_reference(written: Path) -> None:
    """Below the threshold that `embed` wrote down, a face is somebody else's."""
    found = read_embeddings(written)
    likeness = np.array([0.9, 0.1, 0.28, 0.27], np.float32)
    about = {**found.metadata, "min_similarity": "0.28"}
    written.write_bytes(replace(found, similarities=likeness, metadata=about).to_bytes())
    mean = found.vectors[[0, 2]].mean(0)
    reference = read_reference(written)
    np.testing.assert_allclose(reference.numpy(), mean / np.linalg.norm(mean), atol=1e-6)
    with pytest.raises(DatasetError, match=r"no face of the subject .* `lora-prep embed`"):
        read_reference(written, names=["p1.png", "p3.png"])


def test_evaluation_detects_and_says_where_there_is_no_face(
    portraits: list[Portrait], written: Path
) -> None:
    recogniser = load_recogniser(TINY)
    truth: dict[bytes, Face] = {p.image.tobytes(): p.people[0].face for p in portraits}
    blank = np.zeros((64, 64, 3), np.uint8)

    def detect(image: Image) -> list[Face]:
        face = truth.get(image.tobytes())
        return [] if face is None else [face]

    reference = read_reference(written, recogniser, ["p1.png"])
    found = evaluate_identity(
        [portraits[1].image, blank], reference, detect=detect, recogniser=recogniser
    )
    assert found.found == 1
    assert found.similarities[1] is None
    assert found.mean > 0.98
