import hashlib
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_prep.backends import download
from tests.fakes import hub, loopback

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with hub.serve() as server:
        server.files["/a"] = CONTENT
        yield server


@pytest.fixture
def part(tmp_path):
    return tmp_path / "a.part"


def fetch(server, part, **options):
    download.fetch(f"{server.url}/a", part, options.pop("limit", len(CONTENT)), **options)


def break_off(server, part, after):
    """Let a download end after so many bytes."""
    server.cuts = [after]
    with pytest.raises(OSError, match=f"broke off after {after} of {len(CONTENT)} bytes"):
        fetch(server, part)
    assert part.read_bytes() == CONTENT[:after]
    server.requests.clear()


def asked(server):
    return [request.range for request in server.requests]


class TestFetch:
    def test_writes_what_is_served_and_nothing_else(self, server, part):
        fetch(server, part, sha256=DIGEST)
        assert part.read_bytes() == CONTENT
        assert list(part.parent.iterdir()) == [part]

    def test_says_how_far_it_is_on_stderr(self, server, part, capfd):
        fetch(server, part, title="weights")
        out, err = capfd.readouterr()
        assert out == ""
        assert "weights: 100%" in err

    def test_content_without_a_length(self, server, part):
        server.lengths = False
        fetch(server, part, sha256=DIGEST)
        assert part.read_bytes() == CONTENT

    @pytest.mark.parametrize("lengths", [True, False])
    def test_stops_at_the_limit(self, server, part, lengths):
        server.lengths = lengths
        with pytest.raises(ValueError, match=f"larger than {len(CONTENT) - 1} bytes"):
            fetch(server, part, limit=len(CONTENT) - 1)
        assert list(part.parent.iterdir()) == []

    def test_other_content_than_expected_does_not_stay(self, server, part):
        with pytest.raises(ValueError, match=f"damaged.*sha256 is {DIGEST}, not {'0' * 64}"):
            fetch(server, part, sha256="0" * 64)
        assert list(part.parent.iterdir()) == []

    def test_a_file_that_is_not_there(self, server, part):
        with pytest.raises(OSError, match="404"):
            download.fetch(f"{server.url}/b", part, 1)
        assert list(part.parent.iterdir()) == []


class TestResume:
    def test_asks_only_for_the_rest(self, server, part, capfd):
        break_off(server, part, 100_000)
        fetch(server, part, sha256=DIGEST)
        assert part.read_bytes() == CONTENT
        assert asked(server) == ["bytes=100000-"]
        assert list(part.parent.iterdir()) == [part]
        assert " 39%" in capfd.readouterr().err  # where it goes on

    def test_starts_anew_where_the_file_has_changed(self, server, part):
        break_off(server, part, 100_000)
        server.files["/a"] = CONTENT[::-1]
        fetch(server, part)
        assert part.read_bytes() == CONTENT[::-1]
        assert asked(server) == ["bytes=100000-"]

    def test_starts_anew_where_the_server_does_not_do_ranges(self, server, part):
        break_off(server, part, 100_000)
        server.ranges = False
        fetch(server, part, sha256=DIGEST)
        assert part.read_bytes() == CONTENT

    def test_starts_anew_where_the_server_sends_the_rest_of_another_version(self, server, part):
        break_off(server, part, 100_000)
        server.files["/a"] = CONTENT[::-1]
        server.conditions = False
        fetch(server, part)
        assert part.read_bytes() == CONTENT[::-1]
        assert asked(server) == ["bytes=100000-", ""]

    def test_starts_anew_where_there_is_nothing_after_the_part(self, server, part):
        break_off(server, part, 100_000)
        part.write_bytes(CONTENT)
        fetch(server, part, sha256=DIGEST)
        assert asked(server) == ["bytes=256000-", ""]

    @pytest.mark.parametrize("etags", ["", 'W/"{}"'])
    def test_starts_anew_where_the_server_gives_no_strong_validator(self, server, part, etags):
        server.etags = etags
        break_off(server, part, 100_000)
        fetch(server, part, sha256=DIGEST)
        assert asked(server) == [""]

    def test_a_part_of_something_else_is_noticed_at_the_end(self, server, part):
        break_off(server, part, 100_000)
        part.write_bytes(b"x" * 100_000)
        with pytest.raises(ValueError, match="damaged"):
            fetch(server, part, sha256=DIGEST)
        fetch(server, part, sha256=DIGEST)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, len(CONTENT) - 1), max_size=6))
    def test_gets_through_however_often_it_breaks_off(self, tmp_path_factory, cuts):
        part = tmp_path_factory.mktemp("cuts") / "part"
        with hub.serve() as server:
            server.files["/a"] = CONTENT
            server.cuts = list(cuts)
            sent = 0
            for _ in range(len(cuts) + 1):
                try:
                    fetch(server, part, sha256=DIGEST)
                except OSError:
                    continue
                break
            assert part.read_bytes() == CONTENT
            for request, cut in zip(server.requests, cuts, strict=False):
                assert request.range == (f"bytes={sent}-" if sent else "")
                sent = min(sent + cut, len(CONTENT))


class TestTime:
    def test_a_server_that_does_not_answer(self, part, monkeypatch):
        monkeypatch.setattr(download, "ANSWER_SECONDS", 0.1)
        with loopback.silent() as url, pytest.raises(TimeoutError, match=r"no answer within 0\.1"):
            download.fetch(url, part, 1)

    def test_a_server_that_stops_sending(self, server, part, monkeypatch):
        monkeypatch.setattr(download, "STALL_SECONDS", 0.2)
        server.cuts, server.stall = [200_000], True
        with pytest.raises(OSError, match="timed out"):
            fetch(server, part)
        got = part.stat().st_size
        assert 0 < got <= 200_000
        server.requests.clear()
        fetch(server, part, sha256=DIGEST)
        assert asked(server) == [f"bytes={got}-"]


class TestTls:
    @pytest.mark.parametrize(
        "url",
        [
            "http://example.org/a",
            "http://127.0.0.1.example.org/a",
            "http://localhost.example.org/a",
            "file:///etc/passwd",
            "ftp://127.0.0.1/a",
        ],
    )
    def test_nothing_else_than_https_and_this_machine(self, url, part):
        with pytest.raises(ValueError, match="is not HTTPS"):
            download.fetch(url, part, 1)

    def test_a_host_that_the_user_named_may_do_without(self, part):
        with pytest.raises(OSError, match=r"refused|known|resol|answer|name"):
            download.fetch("http://mirror.invalid:1/a", part, 1, trusted="mirror.invalid")

    @pytest.mark.parametrize("target", ["http://example.org/a", "file:///etc/passwd"])
    def test_redirects_must_not_leave_it(self, server, part, target):
        server.redirects["/a"] = target
        with pytest.raises((ValueError, OSError), match=r"is not HTTPS|not allowed"):
            fetch(server, part)

    def test_authorization_stays_with_the_host(self, server, part):
        server.redirects["/a"] = f"{server.url}/b"
        server.redirects["/b"] = f"{server.other_host}/c"
        server.files["/c"] = CONTENT
        fetch(server, part, headers={"Authorization": "Bearer secret"})
        given = {request.path: request.authorization for request in server.requests}
        assert given == {"/a": "Bearer secret", "/b": "Bearer secret", "/c": ""}


class TestAlone:
    def test_one_after_the_other(self, tmp_path):
        events = []

        def second():
            with download.alone(tmp_path / "models"):
                events.append("second")

        with download.alone(tmp_path / "models"):
            thread = threading.Thread(target=second)
            thread.start()
            time.sleep(0.1)
            events.append("first")
        thread.join()
        assert events == ["first", "second"]
        assert list((tmp_path / "models").iterdir()) == []

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="Not a directory"), download.alone(tmp_path / "file/x"):
            pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a.\nb"), "a"),
        (ConnectionResetError(), "ConnectionResetError"),
        (FileNotFoundError(2, "No such file", "/x"), "/x: No such file"),
        (TimeoutError("no answer within 3 seconds"), "no answer within 3 seconds"),
    ],
)
def test_reasons(error, said):
    assert download.reason(error) == said
