import hashlib
import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save

from lora_prep.embeddings import (
    FORMAT,
    Embeddings,
    from_bytes,
    joined,
    read_embeddings,
    with_metadata,
)
from lora_prep.errors import DatasetError


def made(names=("a.jpg", "b/ü.png", "b/ü.png"), width=8, **more):
    rng = np.random.default_rng(len(names))
    n = len(names)
    vectors = rng.normal(size=(n, width)).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    return Embeddings(
        names=tuple(names),
        faces=np.array([names[:i].count(name) for i, name in enumerate(names)], np.int32),
        boxes=rng.uniform(0, 99, (n, 4)).astype(np.float32),
        landmarks=rng.uniform(0, 99, (n, 5, 2)).astype(np.float32),
        scores=rng.uniform(size=n).astype(np.float32),
        vectors=vectors / norms[:, None],
        norms=norms,
        sha256=tuple(hashlib.sha256(name.encode()).hexdigest() for name in names),
        metadata={"model": "tiny", "format": FORMAT},
        **more,
    )


def same(a, b):
    arrays = ("faces", "boxes", "landmarks", "scores", "vectors", "norms", "similarities", "hashes")
    plain = ("names", "sha256", "metadata", "faceless", "faceless_sha256")
    return all(getattr(a, f) == getattr(b, f) for f in plain) and all(
        np.array_equal(getattr(a, f), getattr(b, f)) for f in arrays
    )


NAME = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1)


@settings(max_examples=25, deadline=None)
@given(names=st.lists(NAME.filter(lambda n: n not in (".", "..")), unique=True, max_size=5))
def test_what_is_written_is_read(names):
    rows = made(
        names=names,
        similarities=np.linspace(-1, 1, len(names), dtype=np.float32),
        hashes=np.arange(len(names), dtype=np.uint64) + np.uint64(2**63),
        faceless=("wall.png", "caf\udce9.png"),
        faceless_sha256=("ab" * 32, "cd" * 32),
    )
    data = rows.to_bytes()
    assert same(from_bytes(data), rows)
    assert from_bytes(data).to_bytes() == data


def test_any_safetensors_reader_opens_it(tmp_path):
    path = tmp_path / "embeddings.safetensors"
    rows = made()
    path.write_bytes(rows.to_bytes())
    tensors = load_file(path)
    assert np.array_equal(tensors["vectors"], rows.vectors)
    assert np.array_equal(tensors["faces"], [0, 0, 1])
    assert "similarities" not in tensors
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"model": "tiny", "format": FORMAT}


def test_the_header_stays_short_however_many_rows_there_are(tmp_path):
    names = [f"{i:06}.jpg" for i in range(20_000)]
    data = made(names=tuple(names), width=2).to_bytes()
    assert int.from_bytes(data[:8], "little") < 2000
    assert from_bytes(data).names[-1] == "019999.jpg"


def test_parts_are_joined_in_order_and_one_without_a_face_brings_its_name():
    nobody = replace(made(names=(), width=0), faceless=("w.png",), faceless_sha256=("ab" * 32,))
    rows = joined([made(names=("a.jpg",)), nobody, made()], {"model": "all"})
    assert rows.names == ("a.jpg", "a.jpg", "b/ü.png", "b/ü.png")
    assert rows.vectors.shape == (4, 8)
    assert (rows.faceless, rows.metadata) == (("w.png",), {"model": "all"})


def test_a_row_is_a_face():
    rows = made()
    face = rows.face(1)
    assert np.float32(face.box) == pytest.approx(rows.boxes[1])
    assert np.float32(face.landmarks) == pytest.approx(rows.landmarks[1])


def test_metadata_can_be_added():
    assert with_metadata(made(), reference="x").metadata["reference"] == "x"


class TestRefused:
    """Whatever is wrong with a file is said, and the way out."""

    def read(self, tmp_path, data):
        path = tmp_path / "embeddings.safetensors"
        path.write_bytes(data)
        with pytest.raises(DatasetError) as caught:
            read_embeddings(path)
        assert str(path) in str(caught.value)
        assert "run `lora-prep embed` again" in str(caught.value)
        return str(caught.value)

    def changed(self, **tensors):
        """A file with some tensors replaced, or left out where None."""
        rows = made()
        found = {
            "vectors": rows.vectors, "norms": rows.norms, "boxes": rows.boxes,
            "landmarks": rows.landmarks, "scores": rows.scores, "faces": rows.faces,
            "names": np.frombuffer("".join(rows.names).encode(), np.uint8),
            "names_offsets": np.array([0, 5, 13, 21]),
            "sha256": np.zeros((3, 32), np.uint8),
        }  # fmt: skip
        found = {name: value for name, value in {**found, **tensors}.items() if value is not None}
        return save(found, {"format": FORMAT})

    def test_not_in_the_unchanged_case(self):
        assert from_bytes(self.changed()).names == made().names

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(DatasetError, match=r"there is no .*make it with `lora-prep embed`"):
            read_embeddings(tmp_path / "embeddings.safetensors")

    @pytest.mark.parametrize("size", [0, 7, 8, 300, -1])
    def test_a_file_that_is_cut_off(self, tmp_path, size):
        said = self.read(tmp_path, made().to_bytes()[:size])
        assert "piece of one" in said or "cut off" in said

    def test_a_header_of_nonsense(self, tmp_path):
        for header in (b"{", b"[]", b"\xff\xfe", b'{"vectors": 3}', b"[" * 5000):
            said = self.read(tmp_path, len(header).to_bytes(8, "little") + header)
            assert "header" in said
        huge = (2**63).to_bytes(8, "little") + b"{}"
        assert "no safetensors file" in self.read(tmp_path, huge)

    def test_offsets_and_shapes_that_do_not_fit(self, tmp_path):
        data = made().to_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        for change in ({"shape": [2**40, 2**40]}, {"data_offsets": [-8, 4]}, {"shape": [-3, 8]}):
            header = json.loads(data[8:end])
            header["vectors"].update(change)
            text = json.dumps(header).encode()
            said = self.read(tmp_path, len(text).to_bytes(8, "little") + text + data[end:])
            assert "vectors has" in said

    def test_a_safetensors_file_of_something_else(self, tmp_path):
        assert "something else" in self.read(tmp_path, save({"x": np.zeros(3)}))

    @pytest.mark.parametrize(
        ("tensors", "said"),
        [
            ({"norms": None}, "the tensor norms is missing"),
            ({"vectors": np.zeros((3, 8), np.float16)}, "vectors is of type F16, not F32"),
            ({"boxes": np.zeros((3, 5), np.float32)}, "boxes has the shape [3, 5]"),
            ({"scores": np.zeros(2, np.float32)}, "scores has the shape [2]"),
            ({"scores": np.zeros((3, 1), np.float32)}, "scores has the shape [3, 1]"),
            ({"scores": np.array([1, np.nan, 1], np.float32)}, "not finite, for b/ü.png"),
            ({"vectors": np.full((3, 8), np.inf, np.float32)}, "not finite, for a.jpg"),
            ({"vectors": np.full((3, 8), 0.5, np.float32)}, "has the length 1.41, not 1"),
            ({"norms": np.zeros(3, np.float32)}, "below 0"),
            ({"faces": np.array([0, 1, 1], np.int32)}, "a face is there twice"),
            ({"similarities": np.full(3, 1.5, np.float32)}, "not cosines"),
            ({"similarities": np.full(3, np.nan, np.float32)}, "not cosines"),
            ({"names_offsets": np.array([0, 13, 5, 21])}, "names_offsets do not fit"),
            ({"names_offsets": np.array([0, 5, 13, 99])}, "names_offsets do not fit"),
            ({"names": np.frombuffer(b"../x/" + b"a" * 16, np.uint8)}, "leads out"),
            ({"faceless": np.zeros(0, np.uint8)}, "one misses"),
        ],
    )
    def test_tensors_that_cannot_be(self, tmp_path, tensors, said):
        assert said in self.read(tmp_path, self.changed(**tensors))

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_a_changed_byte_gives_rows_or_a_valueerror_nothing_else(self, data):
        content = bytearray(made().to_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        with suppress(ValueError):
            from_bytes(bytes(content))
