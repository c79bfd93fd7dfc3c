import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from lora_prep import imageio
from lora_prep.backends.embedding_cache import EmbeddingCache
from lora_prep.errors import DatasetError

SQUARE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
LEVELS = [np.random.default_rng(i).normal(size=(2, i, i)).astype(np.float16) for i in (4, 2, 1)]


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "embeddings", "model float32")


@pytest.fixture
def written(cache):
    key = cache.key(SQUARE)
    cache.write(key, LEVELS)
    return key


def equal(levels):
    return all(np.array_equal(a, b) for a, b in zip(levels, LEVELS, strict=True))


def test_gives_back_what_was_written(cache, written):
    assert equal(cache.read(written))
    assert [p.name for p in cache.folder.iterdir()] == [f"{written}.safetensors"]


def test_nothing_is_known_at_first(cache):
    assert cache.read(cache.key(SQUARE)) is None
    assert not cache.folder.exists()


def test_another_program_can_read_it(cache, written):
    names = ("high_res_0", "high_res_1", "image_embed")
    arrays = load(cache.path(written).read_bytes())
    assert [arrays[name].shape for name in names] == [level.shape for level in LEVELS]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}


def test_the_key_follows_the_pixels_and_the_encoder(cache):
    other = SQUARE.copy()
    other[0, 0, 0] ^= 1
    keys = {cache.key(SQUARE), cache.key(other)}
    keys.add(EmbeddingCache(cache.folder, "model bfloat16").key(SQUARE))
    assert len(keys) == 3
    assert cache.key(SQUARE[:, ::-1][:, ::-1]) == cache.key(SQUARE)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_not_used(tmp_path_factory, data):
    cache = EmbeddingCache(tmp_path_factory.mktemp("cache"), "model")
    key = cache.key(SQUARE)
    cache.write(key, LEVELS)
    good = cache.path(key).read_bytes()
    if data.draw(st.booleans()):
        damaged = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        at, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
        damaged = good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :]
    cache.path(key).write_bytes(damaged)
    found = cache.read(key)
    assert found is None or equal(found)  # some bits of the header say nothing about the arrays
    cache.write(key, LEVELS)
    assert equal(cache.read(key))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, struct.pack("<Q", 2) + b"[]", b"1"])
def test_foreign_files_are_not_used(cache, written, content):
    cache.path(written).write_bytes(content)
    assert cache.read(written) is None


def test_features_of_another_image_are_not_used(cache, written):
    other = cache.key(SQUARE + np.uint8(1))
    cache.path(written).rename(cache.path(other))
    assert cache.read(other) is None


def test_what_a_killed_run_left_is_swept(cache, written):
    part = imageio.write_part(cache.path(written), b"half", token="00000000-1-00000000")
    os.utime(part, (0, 0))
    assert equal(EmbeddingCache(cache.folder, cache.encoder).read(written))
    assert not part.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file", "model")
    assert cache.read("key") is None
    with pytest.raises(DatasetError, match="file"):
        cache.write("key", LEVELS)
