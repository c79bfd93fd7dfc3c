"""Downloads over HTTP that go on where they broke off, and that end in time.

What has arrived lies in a part file, beside it the validator (ETag) of the version that it is of.
The next try asks for the rest with Range and If-Range; a server that has another version by now, or
that does not do ranges, sends everything, and the part starts anew.
"""

import hashlib
import http.client
import ipaddress
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from lora_prep import __version__

T = TypeVar("T")

ANSWER_SECONDS = 3.0
"""How long a server may take for its first answer, name look-up and redirects included."""

STALL_SECONDS = 20.0
"""How long it may take between two pieces of the answer."""

PIECE = 1 << 16

FAILURES = (OSError, ValueError, http.client.HTTPException)
"""What a download can end with: the network, the server, the disk, or not what was expected."""


def fetch(
    url: str,
    part: Path,
    limit: int,
    *,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    trusted: str = "",
    title: str = "",
) -> None:
    """Complete `part` with what `url` answers, with a progress bar on stderr.

    Asks only for what is not in `part` yet. `title` stands before the bar. `trusted` is a host that
    plain HTTP is allowed for, besides this machine itself. An Authorization among the `headers` is
    not sent on to other hosts that the server redirects to.

    Raises one of FAILURES: OSError for timeouts, HTTP errors and a connection that breaks off,
    after which `part` can be completed another time; ValueError for more than `limit` bytes,
    another SHA-256 than expected, or a URL without TLS, after which no part is left.
    """
    _require_tls(url, trusted)
    opener = urllib.request.build_opener(_Redirects(trusted))
    done, etag = _so_far(part)
    response, done = _ask(opener, url, headers or {}, done, etag)
    with response:
        _receive(response, part, done, limit, title or part.name)
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and found != sha256:
        forget(part)
        raise ValueError(f"it arrived damaged and was deleted: its sha256 is {found}, not {sha256}")
    _etag_file(part).unlink(missing_ok=True)


def forget(part: Path) -> None:
    """Delete what has arrived so far."""
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder and wait until no other process downloads into it.

    The lock ends with the process, however it ends. File systems without locks are not locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, or TimeoutError: name look-ups know no timeout of their own."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from error


def reason(error: BaseException) -> str:
    """An error in a line, for use within a sentence."""
    if type(error) is urllib.error.URLError:
        return str(error.reason)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")


def _ask(
    opener: urllib.request.OpenerDirector,
    url: str,
    headers: Mapping[str, str],
    done: int,
    etag: str,
) -> tuple[Any, int]:
    """The server's answer, and how many bytes of the content stand before it."""
    about = {"User-Agent": f"lora-prep/{__version__}", **headers}

    def ask(more: Mapping[str, str]) -> Any:
        request = urllib.request.Request(url, headers={**about, **more})
        return within(ANSWER_SECONDS, lambda: opener.open(request, timeout=STALL_SECONDS))

    if done and etag:
        try:
            response = ask({"Range": f"bytes={done}-", "If-Range": etag})
        except urllib.error.HTTPError as error:
            if error.code != 416:  # which says that there is nothing after the part
                raise
        else:
            if response.status == 200:
                return response, 0
            start = str(response.headers.get("Content-Range", ""))
            if start.startswith(f"bytes {done}-") and response.headers.get("ETag") == etag:
                return response, done
            response.close()
    return ask({}), 0


def _receive(response: Any, part: Path, done: int, limit: int, title: str) -> None:
    """Add the answer's body to the part."""
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    if total is not None and total > limit:
        forget(part)
        raise ValueError(f"it is larger than {limit} bytes")
    if not done:
        part.write_bytes(b"")  # before the validator, which must never stand beside other content
        etag = response.headers.get("ETag", "")
        _etag_file(part).write_text("" if etag.startswith("W/") else etag)
    with (
        part.open("ab") as file,
        tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="B",
            unit_scale=True,
            mininterval=0.5,
        ) as bar,
    ):
        while piece := response.read(PIECE):
            if bar.n + len(piece) > limit:
                break
            file.write(piece)
            bar.update(len(piece))
    if piece:
        forget(part)
        raise ValueError(f"it is larger than {limit} bytes")
    if total is not None and bar.n != total:
        raise OSError(
            f"the connection broke off after {bar.n} of {total} bytes; the next try goes on there"
        )


def _so_far(part: Path) -> tuple[int, str]:
    """How much has arrived, and of which version."""
    try:
        return part.stat().st_size, _etag_file(part).read_text()
    except FileNotFoundError:
        return 0, ""


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _require_tls(url: str, trusted: str) -> None:
    """Raise ValueError unless the URL is HTTPS, or plain HTTP to this machine or `trusted`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        return
    if parts.scheme != "http" or not (host == trusted or _is_loopback(host)):
        raise ValueError(f"{url} is not HTTPS")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to TLS only, and keeps the authorization from other hosts."""

    def __init__(self, trusted: str) -> None:
        self._trusted = trusted

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _require_tls(newurl, self._trusted)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request
