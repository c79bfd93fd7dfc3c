"""A server on the loopback interface laid out like those that models come from.

The model hub answers a question for a file with its SHA-256 (`X-Linked-ETag`), size and revision,
and redirects to another host, which serves ranges of the content. A release page redirects, too.
"""

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    method: str
    path: str
    range: str
    authorization: str


@dataclass
class Server:
    """A running server; what it does can be changed while it runs."""

    url: str = ""
    other_host: str = ""
    """The same server under another name: where redirects lead."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path."""
    redirects: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    """Path of a large file on the hub: the SHA-256 that the hub says it has."""
    ranges: bool = True
    """Whether a Range is honoured."""
    conditions: bool = True
    """Whether an If-Range is."""
    etags: str = '"{}"'
    """The validator, with the content's hash put in; empty for none."""
    lengths: bool = True
    """Whether the content's length is told beforehand."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the next answers with a body end."""
    stall: bool = False
    """Whether an answer that was cut then waits instead of hanging up."""
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def bodies(self) -> list[Request]:
        """The requests that content was sent for."""
        return [one for one in self.requests if one.method == "GET" and one.path in self.files]

    def add_to_hub(self, repo: str, filename: str, content: bytes, sha256: str = "") -> None:
        """A large file on the hub, with the hash that it is said to have."""
        digest = hashlib.sha256(content).hexdigest()
        path = f"/{repo}/resolve/main/{filename}"
        self.hub[path] = sha256 or digest
        self.redirects[path] = f"{self.other_host}/cdn/{digest}"
        self.files[f"/cdn/{digest}"] = content

    def add_release(self, name: str, content: bytes) -> None:
        """A file of a release."""
        self.redirects[f"/releases/{name}"] = f"{self.other_host}/assets/{name}"
        self.files[f"/assets/{name}"] = content


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run a server."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            about = self.headers
            asked, condition = about.get("Range", ""), about.get("If-Range", "")
            request = Request(self.command, self.path, asked, about.get("Authorization", ""))
            state.requests.append(request)
            if self.path in state.redirects:
                self.redirect()
                return
            body = state.files.get(self.path)
            if body is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            etag = state.etags.format(hashlib.sha256(body).hexdigest()[:16])
            start = self.start(asked, condition, etag)
            if start >= len(body) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if etag:
                self.send_header("ETag", etag)
            if state.lengths:
                self.send_header("Content-Length", str(len(body) - start))
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.send(body[start:])

        def start(self, asked: str, condition: str, etag: str) -> int:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            fresh = not state.conditions or condition in ("", etag)
            return int(match[1]) if match and state.ranges and fresh else 0

        def redirect(self) -> None:
            self.send_response(302)
            if self.path in state.hub:
                content = state.files[state.redirects[self.path].removeprefix(state.other_host)]
                self.send_header("X-Linked-ETag", f'"{state.hub[self.path]}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Location", state.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, body: bytes) -> None:
            cut = state.cuts.pop(0) if state.cuts else len(body)
            self.wfile.write(body[:cut])
            if cut < len(body) and state.stall:
                self.wfile.flush()
                state.released.wait(30)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    state.other_host = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
