import hashlib
import io
import os
import zipfile
from dataclasses import replace

import huggingface_hub
import pytest
from huggingface_hub import constants

from lora_prep import digests
from lora_prep.backends import catalogue, sam2_model, weights
from lora_prep.backends.catalogue import MODELS, Model, files, locate, named, pull, remove, verify
from lora_prep.errors import BackendError, UsageError
from tests.fakes import hub

TINY = "facebook/sam2-hiera-tiny"
CHECKPOINT = os.urandom(50_000)
MEMBERS = {"det_10g.onnx": b"detector", "w600k_r50.onnx": b"recogniser", "genderage.onnx": b"age"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without models who has accepted insightface's licence."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LORA_PREP_ACCEPT_LICENSE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.fixture
def server(home, monkeypatch):
    """A hub that has the checkpoint, and a release that has the pack."""
    with hub.serve() as server:
        server.add_to_hub(TINY, "sam2_hiera_tiny.pt", CHECKPOINT)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in MEMBERS.items():
                archive.writestr(name, content)
        content = data.getvalue()
        server.add_release("buffalo_l.zip", content)
        monkeypatch.setattr(weights, "RELEASES", f"{server.url}/releases/")
        pack = weights.Pack(sha(content), len(content))
        monkeypatch.setitem(weights.PACKS, "buffalo_l", pack)
        for name in ("det_10g.onnx", "w600k_r50.onnx"):
            monkeypatch.setitem(catalogue.PACK_FILES, name, sha(MEMBERS[name]))
        yield server


def sha(content):
    return hashlib.sha256(content).hexdigest()


def below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def found(model):
    """Status and hash's origin by file."""
    return {check.path.name: (check.status, check.against) for check in verify(model)}


class TestModels:
    def test_there_are_the_packs_the_checkpoints_and_opencvs_models(self):
        packs = ["buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc", "antelopev2"]
        assert [*MODELS] == [*packs, *sam2_model.HUB, "yunet", "sface"]
        assert [name for name, model in MODELS.items() if model.is_pack] == packs

    def test_every_entry_is_complete(self):
        for model in MODELS.values():
            assert model.use in ("faces", "masks", "identity")
            assert model.license in ("MIT", "Apache-2.0", "non-commercial research")
            assert 200_000 < model.size < weights.MAX_BYTES
            assert model.sha256 is None or digests.is_sha256(model.sha256)
            assert bool(model.repo) == bool(model.filename)
            assert model.source.startswith("https://")

    def test_only_insightfaces_packs_are_not_free_for_all_uses(self):
        for model in MODELS.values():
            assert (model.license == "non-commercial research") == model.is_pack

    def test_sources(self):
        assert MODELS["buffalo_sc"].source == (
            "https://github.com/deepinsight/insightface/releases/download/model-zoo/buffalo_sc.zip"
        )
        assert MODELS["yunet"].source == (
            "https://huggingface.co/opencv/face_detection_yunet/resolve/main/"
            "face_detection_yunet_2023mar.onnx"
        )

    def test_names(self):
        assert named("sface") is MODELS["sface"]
        with pytest.raises(UsageError, match="no model bufalo_l: did you mean buffalo_l"):
            named("bufalo_l")
        with pytest.raises(UsageError, match="no model 123: there are buffalo_l, "):
            named("123")


class TestCheckpoint:
    model = MODELS[TINY]

    def test_is_not_here_at_first(self, home):
        assert locate(self.model) is None
        assert files(self.model) == []
        assert list(verify(self.model)) == [
            catalogue.Check(weights.Path("sam2_hiera_tiny.pt"), "missing", "")
        ]

    def test_pulled_located_and_verified(self, server):
        place = pull(self.model)
        assert place == locate(self.model)
        assert place.read_bytes() == CHECKPOINT
        assert sam2_model.find(sam2_model.SegmenterSpec(model=TINY)).checkpoint == place
        assert found(self.model) == {"sam2_hiera_tiny.pt": ("ok", "the hub's, when it was pulled")}

    def test_damage_is_found(self, server):
        place = pull(self.model)
        os.truncate(place.resolve(), 100)
        assert found(self.model)["sam2_hiera_tiny.pt"][0] == "damaged"

    def test_without_links_there_is_nothing_to_compare_with(self, server):
        place = pull(self.model)
        content = place.resolve().rename(place.with_suffix(".moved"))
        place.unlink()
        content.rename(place)
        assert found(self.model) == {"sam2_hiera_tiny.pt": ("unknown", "")}

    def test_a_known_hash_goes_before_the_hubs(self, server):
        place = pull(self.model)
        known = replace(self.model, sha256=sha(CHECKPOINT))
        assert found(known) == {place.name: ("ok", "its publisher's")}
        other = replace(self.model, sha256="0" * 64)
        assert found(other) == {place.name: ("damaged", "its publisher's")}

    def test_removed_it_leaves_nothing_of_the_repository(self, server, home):
        place = pull(self.model)
        assert set(files(self.model)) == {place, place.resolve()}
        remove(self.model)
        assert locate(self.model) is None
        assert not (home / "hub" / "models--facebook--sam2-hiera-tiny").exists()
        assert pull(self.model).read_bytes() == CHECKPOINT

    def test_what_broke_off_is_removed_too(self, server, home):
        server.cuts = [20_000]
        with pytest.raises(BackendError, match=r"broke off.*lora-prep models pull"):
            pull(self.model)
        (part, etag) = files(self.model)
        assert part.name == f"{sha(CHECKPOINT)}.incomplete"
        assert etag.name == f"{sha(CHECKPOINT)}.incomplete.etag"
        remove(self.model)
        assert below(home / "hub") == []

    def test_other_files_of_the_repository_stay(self, server, home):
        server.add_to_hub(TINY, "model.safetensors", b"others use it")
        server.add_to_hub(TINY, "same.pt", CHECKPOINT)
        other, same = (
            weights.hub_file(TINY, name, "") for name in ("model.safetensors", "same.pt")
        )
        place = pull(self.model)
        (other.parents[2] / "blobs" / "other.incomplete").touch()
        assert remove(self.model) == [place]  # its content is same.pt's, too
        assert other.read_bytes() == b"others use it"
        assert same.read_bytes() == CHECKPOINT
        huggingface_hub.scan_cache_dir(home / "hub")
        assert (other.parents[2] / "blobs" / "other.incomplete").exists()


class TestPack:
    @pytest.fixture
    def model(self, server):
        return named("buffalo_l")

    @pytest.fixture
    def folder(self, home):
        return home / ".insightface" / "models" / "buffalo_l"

    def test_is_not_here_at_first(self, model, folder):
        assert locate(model) is None
        assert files(model) == []
        assert [check.status for check in verify(model)] == ["missing"]

    def test_pulled_located_and_verified(self, model, folder):
        assert pull(model) == locate(model) == folder
        assert found(model) == {
            "det_10g.onnx": ("ok", "its publisher's"),
            "w600k_r50.onnx": ("ok", "its publisher's"),
            "genderage.onnx": ("ok", "the one of when it was pulled"),
        }

    def test_a_directory_of_its_name_here_is_something_else(self, model, folder, home, monkeypatch):
        (home / "buffalo_l").mkdir()
        monkeypatch.chdir(home)
        assert pull(model) == folder

    def test_unpacked_by_hand(self, model, folder):
        folder.mkdir(parents=True)
        for name, content in MEMBERS.items():
            (folder / name).write_bytes(content)
        assert pull(model) == folder
        assert found(model) == {
            "det_10g.onnx": ("ok", "its publisher's"),
            "w600k_r50.onnx": ("ok", "its publisher's"),
            "genderage.onnx": ("unknown", ""),
        }

    def test_damaged_and_missing_files_are_found(self, model, folder):
        pull(model)
        (folder / "det_10g.onnx").write_bytes(b"detectoR")
        (folder / "genderage.onnx").write_bytes(b"age!")
        (folder / "w600k_r50.onnx").unlink()
        assert {name: status for name, (status, _) in found(model).items()} == {
            "det_10g.onnx": "damaged",
            "genderage.onnx": "damaged",
            "w600k_r50.onnx": "missing",
        }

    def test_a_damaged_record_is_none(self, model, folder):
        pull(model)
        (folder / "SHA256SUMS").write_bytes(b"\xff no record")
        assert found(model)["genderage.onnx"] == ("unknown", "")
        assert found(model)["det_10g.onnx"][0] == "ok"

    def test_removed_it_leaves_nothing(self, model, folder):
        pull(model)
        assert [path.name for path in files(model)] == ["SHA256SUMS", *sorted(MEMBERS)]
        remove(model)
        assert list(folder.parent.iterdir()) == []

    def test_other_files_in_its_directory_stay(self, model, folder):
        pull(model)
        (folder / "my_own.onnx").touch()
        (folder / "notes").mkdir()
        (folder / "notes" / "genderage.onnx").touch()
        remove(model)
        assert below(folder) == ["my_own.onnx", "notes/genderage.onnx"]

    def test_what_insightface_itself_unpacked_is_removed(self, model, folder):
        (folder / "buffalo_l").mkdir(parents=True)
        (folder / "buffalo_l" / "genderage.onnx").touch()
        (folder / "my_own.onnx").touch()
        folder.with_name("buffalo_l.zip").touch()
        folder.with_name("buffalo_la.zip").touch()
        remove(model)
        assert below(folder.parent) == ["buffalo_l/my_own.onnx", "buffalo_la.zip"]

    def test_what_broke_off_is_removed(self, model, folder, server):
        server.cuts = [100]
        with pytest.raises(BackendError, match="broke off"):
            pull(model)
        assert [path.name for path in remove(model)] == [
            "buffalo_l.zip.part",
            "buffalo_l.zip.part.etag",
        ]
        assert list(folder.parent.iterdir()) == []

    def test_a_directory_that_is_a_link_is_not_touched(self, model, folder, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "det_10g.onnx").touch()
        folder.parent.mkdir(parents=True)
        folder.symlink_to(tmp_path / "mine")
        for act in (files, remove):
            with pytest.raises(BackendError, match=r"is a link to .*mine.*remove it yourself"):
                act(model)
        assert below(tmp_path / "mine") == ["det_10g.onnx"]

    def test_the_licence_comes_first(self, model, folder, server, home, monkeypatch):
        monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "conf"))
        with pytest.raises(BackendError, match="not been accepted yet"):
            pull(model)
        assert server.requests == []


def test_yunet_is_fetched_under_its_known_hash_only(server):
    yunet = MODELS["yunet"]
    server.add_to_hub(yunet.repo, yunet.filename, b"something else")
    with pytest.raises(BackendError, match=f"not {yunet.sha256}"):
        pull(yunet)
    assert server.bodies == []
    assert locate(yunet) is None
    model = Model("x", "faces", "MIT", 14, sha(b"something else"), yunet.repo, yunet.filename)
    assert pull(model).read_bytes() == b"something else"
