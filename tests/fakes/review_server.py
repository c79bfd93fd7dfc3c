"""The page of `lora-prep review`, served to this process."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lora_prep.backends import SegmenterSpec
from lora_prep.review import app
from lora_prep.review.segment import Clicking
from lora_prep.review.session import Session

TOKEN = "token-of-this-run"
GRABCUT = SegmenterSpec("grabcut")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    port: int
    session: Session

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{TOKEN}/"

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask for exactly this path, below the token; objects go as JSON."""
        return self.ask_exactly(f"/{TOKEN}/{path}", method, body, headers)

    def ask_exactly(
        self,
        path: str,
        method: str = "GET",
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        given = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


@contextmanager
def serving(session: Session, spec: SegmenterSpec = GRABCUT) -> Iterator[Served]:
    """A server in a thread, until the end of the block."""
    listening = app.listen(0)
    server = app.server(app.application(session, Clicking(spec), TOKEN))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Served(listening.getsockname()[1], session)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
