import contextlib
import hashlib
import io
import os
import stat
import subprocess
import sys
import time
import zipfile

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from insightface.utils import storage

from lora_prep import digests
from lora_prep.backends import download, weights
from lora_prep.errors import BackendError
from tests.fakes import hub, loopback

REPO, FILE = "someone/model", "weights.pt"
CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with hub.serve() as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the model hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "hub"


@pytest.fixture
def endpoint(cache, monkeypatch):
    """Nothing is reachable until a test says where the hub is."""

    def use(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )

    return use


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


class TestHubFile:
    @pytest.fixture
    def model(self, server, endpoint):
        """The hub has the model."""
        server.add_to_hub(REPO, FILE, CONTENT)
        endpoint(server.url)
        return server

    def test_downloads_once(self, model):
        path = weights.hub_file(REPO, FILE, "")
        assert path.read_bytes() == CONTENT
        assert digests.sha256(path) == DIGEST
        asked = len(model.requests)
        assert weights.hub_file(REPO, FILE, "") == path
        assert len(model.requests) == asked
        assert len(model.bodies) == 1

    def test_lies_as_the_hub_itself_would_file_it(self, model, cache):
        import huggingface_hub

        path = weights.hub_file(REPO, FILE, "")
        assert path == cache / "models--someone--model" / "snapshots" / hub.COMMIT / FILE
        assert path.resolve() == cache / "models--someone--model" / "blobs" / DIGEST
        assert str(path) == huggingface_hub.hf_hub_download(REPO, FILE, local_files_only=True)
        (found,) = huggingface_hub.scan_cache_dir(cache).repos
        assert (found.repo_id, found.size_on_disk) == (REPO, len(CONTENT))

    def test_goes_on_where_it_broke_off(self, model, cache):
        model.cuts = [100_000]
        with pytest.raises(BackendError, match="broke off after 100000 of 256000 bytes"):
            weights.hub_file(REPO, FILE, "")
        assert weights.cached_hub_file(REPO, FILE) is None
        path = weights.hub_file(REPO, FILE, "")
        assert [request.range for request in model.bodies] == ["", "bytes=100000-"]
        assert path.read_bytes() == CONTENT
        assert not [name for name in files_below(cache) if "incomplete" in name]

    def test_a_killed_download_goes_on_where_it_was(self, model, cache):
        model.cuts, model.stall = [200_000], True
        code = f"from lora_prep.backends import weights; weights.hub_file({REPO!r}, {FILE!r}, '')"
        variables = {**os.environ, "HF_ENDPOINT": model.url, "HF_HUB_CACHE": str(cache)}
        process = subprocess.Popen([sys.executable, "-c", code], env=variables, stderr=-1)
        part = cache / "models--someone--model" / "blobs" / f"{DIGEST}.incomplete"
        while process.poll() is None and not (part.exists() and part.stat().st_size >= 65536):
            time.sleep(0.02)
        process.kill()
        process.communicate()
        got = part.stat().st_size
        assert 0 < got < len(CONTENT)
        assert weights.hub_file(REPO, FILE, "").read_bytes() == CONTENT
        assert model.bodies[-1].range == f"bytes={got}-"

    def test_a_small_file_that_the_hub_has_no_sha256_of(self, model):
        model.files[f"/{REPO}/resolve/main/config.json"] = b"{}"
        assert weights.hub_file(REPO, "config.json", "").read_bytes() == b"{}"

    def test_a_file_in_the_cache_needs_no_network(self, model, endpoint):
        path = weights.hub_file(REPO, FILE, "")
        endpoint(loopback.closed())
        assert weights.hub_file(REPO, FILE, "") == path

    def test_a_refused_connection(self, endpoint):
        endpoint(loopback.closed())
        with pytest.raises(BackendError, match=r"weights\.pt is not in .*hub.* do that instead"):
            weights.hub_file(REPO, FILE, "do that instead")

    def test_a_server_that_does_not_answer(self, endpoint, monkeypatch):
        monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
        with loopback.silent() as url:
            endpoint(url)
            with pytest.raises(BackendError, match=r"does not give it: .*advice"):
                weights.hub_file(REPO, FILE, "advice")

    def test_offline_mode_asks_nobody(self, model, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(BackendError, match="HF_HUB_OFFLINE forbids"):
            weights.hub_file(REPO, FILE, "")
        assert model.requests == []

    def test_a_file_that_is_not_there(self, server, endpoint):
        endpoint(server.url)
        with pytest.raises(BackendError, match=f"{server.url} does not give it: .*404"):
            weights.hub_file(REPO, FILE, "")

    def test_a_damaged_download_does_not_stay(self, server, endpoint, cache):
        server.add_to_hub(REPO, FILE, CONTENT, sha256="0" * 64)
        endpoint(server.url)
        with pytest.raises(BackendError, match="arrived damaged"):
            weights.hub_file(REPO, FILE, "")
        assert files_below(cache) == []

    def test_another_file_than_the_known_one_is_not_downloaded(self, model, cache):
        with pytest.raises(BackendError, match=f"has the sha256 {DIGEST}, not {'1' * 64}"):
            weights.hub_file(REPO, FILE, "", expected="1" * 64)
        assert model.bodies == []

    def test_a_small_file_other_than_the_known_one_does_not_stay(self, model, cache):
        model.files[f"/{REPO}/resolve/main/config.json"] = b"{}"
        with pytest.raises(BackendError, match="its sha256 was not 111"):
            weights.hub_file(REPO, "config.json", "", expected="1" * 64)
        assert weights.cached_hub_file(REPO, "config.json") is None
        assert not [p for p in cache.rglob("*") if p.is_file() and p.read_bytes() == b"{}"]

    def test_the_known_file_is(self, model):
        assert weights.hub_file(REPO, FILE, "", expected=DIGEST).read_bytes() == CONTENT

    def test_the_users_token_is_for_the_hub_only(self, model, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        weights.hub_file(REPO, FILE, "")
        seen = {(r.path.startswith("/cdn"), r.authorization) for r in model.requests}
        assert seen == {(False, "Bearer hf_secret"), (True, "")}


def archive(entries, symlinks=()):
    """A ZIP file's bytes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
        for name in symlinks:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "/etc")
    return data.getvalue()


class TestUnpack:
    def unpack(self, tmp_path, data, limit=1 << 20):
        (tmp_path / "a.zip").write_bytes(data)
        weights.unpack(tmp_path / "a.zip", tmp_path / "out", limit)
        return files_below(tmp_path / "out")

    def test_keeps_models_and_leaves_the_rest(self, tmp_path):
        data = archive({"det.onnx": b"1", "x/rec.ONNX": b"2", "run.sh": b"3", "manifest.json": b""})
        assert self.unpack(tmp_path, data) == ["det.onnx", "manifest.json", "x/rec.ONNX"]

    @pytest.mark.parametrize(
        "name",
        ["../evil.onnx", "a/../../evil.onnx", "/evil.onnx", "..\\evil.onnx", "c:evil.onnx"],
    )
    def test_refuses_entries_that_leave_the_folder(self, tmp_path, name):
        with pytest.raises(ValueError, match="outside the pack"):
            self.unpack(tmp_path, archive({"a.onnx": b"", name: b"evil"}))
        assert not [p for p in tmp_path.rglob("*") if "evil" in p.name]

    def test_refuses_links(self, tmp_path):
        with pytest.raises(ValueError, match="is a link"):
            self.unpack(tmp_path, archive({}, symlinks=["a.onnx"]))

    def test_refuses_bombs(self, tmp_path):
        bomb = archive({"a.onnx": bytes(2 << 20)})
        assert len(bomb) < 10_000
        with pytest.raises(ValueError, match="unpacks to more than 1 MiB"):
            self.unpack(tmp_path, bomb)

    def test_refuses_a_size_that_is_a_lie(self, tmp_path):
        data = archive({"a.onnx": bytes(2 << 20)})
        lie = data.replace((2 << 20).to_bytes(4, "little"), (5).to_bytes(4, "little"))
        assert lie != data
        with pytest.raises(zipfile.BadZipFile):
            self.unpack(tmp_path, lie)
        assert (tmp_path / "out" / "a.onnx").stat().st_size <= 5

    @given(st.lists(st.sampled_from(["..", ".", "a", "b.onnx", "", "c:"]), min_size=1, max_size=5))
    def test_nothing_lands_outside(self, tmp_path_factory, parts):
        folder = tmp_path_factory.mktemp("property")
        with contextlib.suppress(ValueError, OSError):
            self.unpack(folder, archive({f"{'/'.join(parts)}.onnx": b"1"}))
        assert all(name.startswith("out/") or name == "a.zip" for name in files_below(folder))


class TestFacePack:
    @pytest.fixture
    def home(self, tmp_path, monkeypatch):
        """A user who has accepted insightface's licence and has no packs."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        monkeypatch.setenv("LORA_PREP_ACCEPT_LICENSE", "1")
        return tmp_path

    @pytest.fixture
    def release(self, server, monkeypatch):
        """Serve these bytes as insightface's pack of that name, and know their hash."""
        monkeypatch.setattr(weights, "RELEASES", f"{server.url}/releases/")

        def add(name, data, digest=None):
            digest = digest or hashlib.sha256(data).hexdigest()
            monkeypatch.setitem(weights.PACKS, name, weights.Pack(digest, len(data)))
            server.add_release(f"{name}.zip", data)
            return server

        return add

    def test_a_directory(self, tmp_path):
        (tmp_path / "a.onnx").touch()
        assert weights.face_pack(str(tmp_path)) == tmp_path

    def test_a_name_among_the_users_packs(self, home):
        folder = home / ".insightface" / "models" / "my_pack"
        folder.mkdir(parents=True)
        (folder / "a.onnx").touch()
        assert weights.face_pack("my_pack") == folder

    def test_a_pack_within_a_directory_of_its_own_name(self, home):
        folder = home / ".insightface" / "models" / "antelopev2" / "antelopev2"
        folder.mkdir(parents=True)
        (folder / "a.onnx").touch()
        assert weights.face_pack("antelopev2") == folder

    def test_an_empty_directory(self, tmp_path):
        with pytest.raises(BackendError, match=r"no insightface pack: there is no \.onnx"):
            weights.face_pack(str(tmp_path))

    @pytest.mark.parametrize("name", ["no/such/dir", "./pack", "../pack", "~/pack", "/pack"])
    def test_a_path_that_is_not_there_is_not_downloaded(self, home, name):
        with pytest.raises(BackendError, match=f"no directory {name}"):
            weights.face_pack(name)

    def test_a_name_that_insightface_does_not_have(self, home):
        with pytest.raises(BackendError, match=r"no pack buffalo_xl .* its packs are buffalo_l, "):
            weights.face_pack("buffalo_xl")

    def test_a_missing_pack_is_downloaded_once(self, home, release):
        server = release("pack", archive({"pack/a.onnx": b"model", "MODEL.LICENSE": b"terms"}))
        folder = weights.face_pack("pack")
        assert folder == home / ".insightface/models/pack/pack"
        assert (folder / "a.onnx").read_bytes() == b"model"
        assert weights.face_pack("pack") == folder
        assert len(server.bodies) == 1
        assert files_below(home) == [
            ".insightface/models/pack/MODEL.LICENSE",
            ".insightface/models/pack/SHA256SUMS",
            ".insightface/models/pack/pack/a.onnx",
        ]

    def test_the_hashes_of_its_files_are_written_down(self, home, release):
        release("pack", archive({"a.onnx": b"1", "x/b.onnx": b"2"}))
        record = weights.face_pack("pack") / "SHA256SUMS"
        done = subprocess.run(
            ["sha256sum", "--check", record.name], cwd=record.parent, capture_output=True, text=True
        )
        assert (done.stdout, done.returncode) == ("a.onnx: OK\nx/b.onnx: OK\n", 0)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [(archive({"../a.onnx": b""}), "outside the pack"), (b"no archive", "not a zip file")],
    )
    def test_a_bad_archive_leaves_nothing(self, home, release, data, reason):
        release("pack", data)
        with pytest.raises(BackendError, match=reason):
            weights.face_pack("pack")
        assert list((home / ".insightface/models").iterdir()) == []

    def test_another_archive_than_insightfaces_is_refused_and_leaves_nothing(self, home, release):
        release("pack", archive({"a.onnx": b""}), digest="0" * 64)
        with pytest.raises(BackendError, match=f"arrived damaged.*not {'0' * 64}"):
            weights.face_pack("pack")
        assert list((home / ".insightface/models").iterdir()) == []

    def test_goes_on_where_it_broke_off(self, home, release):
        data = archive({"a.onnx": os.urandom(100_000)})
        server = release("pack", data)
        server.cuts = [60_000]
        with pytest.raises(BackendError, match="broke off after 60000 of"):
            weights.face_pack("pack")
        assert files_below(home / ".insightface/models") == ["pack.zip.part", "pack.zip.part.etag"]
        assert files_below(weights.face_pack("pack")) == ["SHA256SUMS", "a.onnx"]
        assert [request.range for request in server.bodies] == ["", "bytes=60000-"]
        assert [p.name for p in (home / ".insightface/models").iterdir()] == ["pack"]

    def test_a_release_that_is_gone(self, home, release):
        server = release("pack", b"")
        server.redirects.clear()
        with pytest.raises(BackendError, match=r"/pack\.zip: it is not there \(404\)"):
            weights.face_pack("pack")

    def test_without_a_network_it_says_what_to_do(self, home, monkeypatch):
        monkeypatch.setattr(weights, "RELEASES", f"{loopback.closed()}/")
        with pytest.raises(BackendError) as raised:
            weights.face_pack("buffalo_l")
        message = str(raised.value)
        assert "buffalo_l is not in" in message
        assert "/buffalo_l.zip" in message
        assert "refused" in message
        assert str(home / ".insightface/models/buffalo_l") in message
        assert "--face-model DIR" in message
        assert "--preset embedded" in message

    def test_a_silent_server(self, home, monkeypatch):
        monkeypatch.setattr(download, "ANSWER_SECONDS", 0.1)
        with loopback.silent() as url:
            monkeypatch.setattr(weights, "RELEASES", f"{url}/")
            with pytest.raises(BackendError, match="no answer within"):
                weights.face_pack("buffalo_l")

    def test_the_address_is_insightfaces_own(self):
        assert storage.MODEL_ZOO_RELEASE_DOWNLOAD_URL == weights.RELEASES

    class TestLicense:
        @pytest.fixture
        def home(self, tmp_path, monkeypatch):
            """A user who has not accepted insightface's licence and has two packs."""
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
            monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
            for name in ("buffalo_l", "my_pack"):
                (tmp_path / ".insightface/models" / name).mkdir(parents=True)
                (tmp_path / ".insightface/models" / name / "a.onnx").touch()
            return tmp_path

        def test_insightfaces_packs_by_name_want_it_accepted(self, home):
            with pytest.raises(BackendError) as raised:
                weights.face_pack("buffalo_l")
            for part in (
                "buffalo_l is one of insightface's",
                "for non-commercial research only",
                "lora-prep models pull buffalo_l --accept-license",
                "LORA_PREP_ACCEPT_LICENSE=1",
                "--detector yunet",
            ):
                assert part in str(raised.value)

        def test_nothing_is_downloaded_before(self, home, server, monkeypatch):
            monkeypatch.setattr(weights, "RELEASES", f"{server.url}/releases/")
            with pytest.raises(BackendError, match="not been accepted"):
                weights.face_pack("buffalo_s")
            assert server.requests == []

        def test_directories_and_other_packs_do_not(self, home):
            models = home / ".insightface/models"
            assert weights.face_pack(str(models / "buffalo_l")) == models / "buffalo_l"
            assert weights.face_pack("my_pack") == models / "my_pack"

        def test_what_wants_it_can_be_asked(self, home, monkeypatch):
            monkeypatch.chdir(home / ".insightface")
            assert weights.is_licensed("buffalo_l")
            assert not weights.is_licensed("my_pack")
            assert not weights.is_licensed(str(home))
            monkeypatch.chdir(home / ".insightface/models")  # where it names a directory
            assert not weights.is_licensed("buffalo_l")
            assert weights.face_pack("buffalo_l").name == "buffalo_l"
