import contextlib
import hashlib
import io
import stat
import zipfile

import huggingface_hub
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from insightface.utils import storage

from lora_prep.backends import weights
from lora_prep.errors import BackendError
from tests.fakes import loopback

REPO, FILE, COMMIT = "someone/model", "weights.pt", "c" * 40
CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the model hub; nothing is reachable until a test sets an endpoint."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    return lambda url: set_endpoint(monkeypatch, url)


def set_endpoint(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


def hub_headers(digest=DIGEST):
    return {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}


HUB_PATH = f"/{REPO}/resolve/main/{FILE}"


class TestSha256:
    def test_follows_the_content(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"1")
        assert weights.sha256(path) == hashlib.sha256(b"1").hexdigest()
        path.write_bytes(b"22")
        assert weights.sha256(path) == hashlib.sha256(b"22").hexdigest()

    def test_reads_an_unchanged_file_once(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"1")
        before = weights._read_sha256.cache_info().hits
        assert weights.sha256(path) == weights.sha256(path)
        assert weights._read_sha256.cache_info().hits == before + 1

    def test_takes_the_name_of_a_blob_in_the_hubs_cache(self, tmp_path):
        name = "ab" * 32
        blob = tmp_path / "blobs" / name
        blob.parent.mkdir()
        blob.write_bytes(b"not what the name says: so it was not read")
        link = tmp_path / "weights.pt"
        link.symlink_to(blob)
        assert weights.sha256(link) == name

    def test_reads_a_file_behind_any_other_link(self, tmp_path):
        target, link = tmp_path / ("ab" * 32), tmp_path / "link"
        target.write_bytes(b"1")
        link.symlink_to(target)
        assert weights.sha256(link) == hashlib.sha256(b"1").hexdigest()


class TestHubFile:
    def test_downloads_once(self, hub):
        with loopback.serve({HUB_PATH: CONTENT}, hub_headers()) as server:
            hub(server.url)
            path = weights.hub_file(REPO, FILE, "")
            assert path.read_bytes() == CONTENT
            assert weights.sha256(path) == DIGEST
            asked = len(server.requests)
            assert weights.hub_file(REPO, FILE, "") == path
            assert len(server.requests) == asked > 0

    def test_a_file_in_the_cache_needs_no_network(self, hub):
        with loopback.serve({HUB_PATH: CONTENT}, hub_headers()) as server:
            hub(server.url)
            path = weights.hub_file(REPO, FILE, "")
        hub(loopback.closed())
        assert weights.hub_file(REPO, FILE, "") == path

    def test_a_refused_connection(self, hub):
        hub(loopback.closed())
        with pytest.raises(BackendError, match=r"weights\.pt is not in .*hub.* do that instead"):
            weights.hub_file(REPO, FILE, "do that instead")

    def test_a_server_that_does_not_answer(self, hub, monkeypatch):
        monkeypatch.setattr(weights, "PROBE_SECONDS", 0.2)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)  # it would wait and retry
        with loopback.silent() as url:
            hub(url)
            with pytest.raises(BackendError, match=r"does not give it: .*advice"):
                weights.hub_file(REPO, FILE, "advice")

    def test_offline_mode_asks_nobody(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with loopback.serve({HUB_PATH: CONTENT}, hub_headers()) as server:
            hub(server.url)
            with pytest.raises(BackendError, match="HF_HUB_OFFLINE forbids"):
                weights.hub_file(REPO, FILE, "")
            assert server.requests == []

    def test_a_file_that_is_not_there(self, hub):
        with loopback.serve({}) as server:
            hub(server.url)
            with pytest.raises(BackendError, match=f"{server.url} does not give it: .*404"):
                weights.hub_file(REPO, FILE, "")

    def test_a_damaged_download_does_not_stay(self, hub, tmp_path):
        with loopback.serve({HUB_PATH: CONTENT}, hub_headers("0" * 64)) as server:
            hub(server.url)
            with pytest.raises(BackendError, match="arrived damaged"):
                weights.hub_file(REPO, FILE, "")
        assert [p for p in (tmp_path / "hub").rglob("*") if p.name in (FILE, "0" * 64)] == []


class TestDownload:
    def test_writes_what_is_served(self, tmp_path):
        with loopback.serve({"/a": CONTENT}) as server:
            digest = weights.download(f"{server.url}/a", tmp_path / "a", len(CONTENT))
        assert digest == DIGEST
        assert (tmp_path / "a").read_bytes() == CONTENT

    def test_says_how_far_it_is_on_stderr(self, tmp_path, capfd):
        with loopback.serve({"/a": CONTENT}) as server:
            weights.download(f"{server.url}/a", tmp_path / "a", len(CONTENT))
        out, err = capfd.readouterr()
        assert out == ""
        assert "100%" in err

    def test_stops_at_the_limit(self, tmp_path):
        with (
            loopback.serve({"/a": CONTENT}) as server,
            pytest.raises(ValueError, match="larger than 0 MiB"),
        ):
            weights.download(f"{server.url}/a", tmp_path / "a", len(CONTENT) - 1)

    def test_notices_a_broken_connection(self, tmp_path):
        with (
            loopback.serve({"/a": CONTENT}, cut=1234) as server,
            pytest.raises(OSError, match="broke off after 1234 of 7000 bytes"),
        ):
            weights.download(f"{server.url}/a", tmp_path / "a", len(CONTENT))

    def test_gives_up_on_a_silent_server(self, tmp_path, monkeypatch):
        monkeypatch.setattr(weights, "TIMEOUT_SECONDS", 0.1)
        with loopback.silent() as url, pytest.raises(OSError, match=r"no answer|timed out"):
            weights.download(url, tmp_path / "a", 1)


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


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


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
        monkeypatch.setenv("HOME", str(tmp_path))
        return tmp_path

    @pytest.fixture
    def release(self, monkeypatch):
        """Serve these bytes as a pack from insightface's release page."""

        def use(url):
            monkeypatch.setattr(storage, "MODEL_ZOO_RELEASE_DOWNLOAD_URL", f"{url}/")

        return use

    def test_a_directory(self, tmp_path):
        (tmp_path / "a.onnx").touch()
        assert weights.face_pack(str(tmp_path)) == tmp_path

    def test_a_name_among_insightfaces_own_packs(self, home):
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

    def test_a_missing_pack_is_downloaded_once(self, home, release):
        data = archive({"pack/a.onnx": b"model"})
        with loopback.serve({"/pack.zip": data}) as server:
            release(server.url)
            folder = weights.face_pack("pack")
            assert folder == home / ".insightface/models/pack/pack"
            assert (folder / "a.onnx").read_bytes() == b"model"
            assert weights.face_pack("pack") == folder
            assert server.requests == ["GET /pack.zip"]
        assert files_below(home) == [".insightface/models/pack/pack/a.onnx"]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (archive({"../a.onnx": b""}), "outside the pack"),
            (archive({"readme.txt": b""}), r"there is no \.onnx file in it"),
            (b"no archive", "not a zip file"),
        ],
    )
    def test_a_bad_archive_leaves_nothing(self, home, release, data, reason):
        with loopback.serve({"/pack.zip": data}) as server:
            release(server.url)
            with pytest.raises(BackendError, match=reason):
                weights.face_pack("pack")
        assert files_below(home) == []

    def test_a_broken_download_leaves_nothing_and_the_next_run_repairs_it(self, home, release):
        data = archive({"a.onnx": bytes(range(256)) * 40})
        with loopback.serve({"/pack.zip": data}, cut=100) as server:
            release(server.url)
            with pytest.raises(BackendError, match="broke off after 100 of"):
                weights.face_pack("pack")
        assert files_below(home) == []
        assert list((home / ".insightface/models").iterdir()) == []
        with loopback.serve({"/pack.zip": data}) as server:
            release(server.url)
            assert files_below(weights.face_pack("pack")) == ["a.onnx"]

    def test_a_name_that_insightface_does_not_have(self, home, release):
        with loopback.serve({}) as server:
            release(server.url)
            with pytest.raises(BackendError, match="no such pack; there are buffalo_l"):
                weights.face_pack("buffalo_xl")

    def test_without_a_network_it_says_what_to_do(self, home, release):
        release(loopback.closed())
        with pytest.raises(BackendError) as raised:
            weights.face_pack("buffalo_l")
        message = str(raised.value)
        assert "buffalo_l is not in" in message
        assert "/buffalo_l.zip" in message
        assert "refused" in message
        assert str(home / ".insightface/models/buffalo_l") in message
        assert "--face-model DIR" in message
        assert "--preset embedded" in message

    def test_a_silent_server(self, home, release, monkeypatch):
        monkeypatch.setattr(weights, "TIMEOUT_SECONDS", 0.1)
        with loopback.silent() as url:
            release(url)
            with pytest.raises(BackendError, match=r"no answer within|timed out"):
                weights.face_pack("buffalo_l")
