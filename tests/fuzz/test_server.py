"""Hostile requests to `lora-prep review`: an answer below 500, and no file but masks is touched."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_prep import imageio
from lora_prep.backends import SegmenterSpec
from lora_prep.dataset import Dataset
from lora_prep.review import app
from lora_prep.review.segment import Clicking
from lora_prep.review.session import Session

TOKEN = "T"
SECRET = b"not for anybody"
ROUTES = ["picture", "mask", "change", "look", "segment", "decision"]
SEGMENTS = st.sampled_from(
    ["..", ".", "%2e%2e", "api", "images", "0", "1", "-1", "9" * 5000, "²", "x.png", "/etc/passwd",
     "secret.txt", "\\", "a\0b", "\ud83d", *ROUTES, *app.PAGES]
)  # fmt: skip
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**400, "1e9px", "-99999999%", "../../x", "erode", "restore", "accepted"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["clicks", "box", "operation", "amount", "verdict", "x"]), inner
    ),
    max_leaves=8,
)  # fmt: skip
BODIES = st.one_of(
    JSONS.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
    st.sampled_from(
        [b"[" * 60_000, b'{"clicks": [[' + b"1" * 400 + b", 1, true]]}", b"x" * 70_000]
    ),
)
NUMBERS = st.sampled_from(["0", "-1", "1", "8", "9" * 30, "9" * 5000, "x", ""])


class Page:
    """The application, asked without a network."""

    def __init__(self, root: Path) -> None:
        for folder in ("faces", "masks"):
            (root / folder).mkdir(parents=True)
        image = np.full((6, 8, 3), 90, np.uint8)
        for number in range(2):
            (root / "faces" / f"i{number}.png").write_bytes(imageio.encode_image(image, "png"))
            mask = imageio.encode_mask(image[..., 0])
            (root / "masks" / f"i{number}.png").write_bytes(mask)
        (root / "secret.txt").write_bytes(SECRET)
        (root / "faces" / "i9.png").symlink_to(root / "secret.txt")
        self.root = root
        session = Session(Dataset.at(root))
        self.app = app.application(session, Clicking(SegmenterSpec("grabcut")), TOKEN)

    def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "", query: str = ""
    ) -> tuple[int, bytes]:
        """The status and the content of the answer."""
        headers = [(b"host", b"127.0.0.1"), (b"content-type", kind.encode())]
        headers.append((b"x-version", b"none"))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": method, "path": path, "raw_path": b"", "query_string": query.encode(),
            "root_path": "", "headers": headers, "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
        }  # fmt: skip
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        content = b"".join(bytes(message.get("body", b"")) for message in sent)
        return int(sent[0]["status"]), content

    def untouchable(self) -> dict[str, bytes]:
        """All files but masks and what lora-prep keeps for itself, the folder above included."""
        above = self.root.parent
        return {
            str(path): path.read_bytes()
            for path in sorted(above.rglob("*"))
            if path.is_file()
            and path.relative_to(self.root).parts[0] not in ("masks", ".lora-prep")
        }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(tmp_path_factory.mktemp("page") / "data")


def assert_harmless(page: Page, status: int, content: bytes, before: dict[str, bytes]) -> None:
    assert 200 <= status < 500
    assert SECRET not in content
    assert b"root:" not in content
    assert page.untouchable() == before
    assert [path.name for path in page.root.parent.iterdir()] == ["data"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "TRACE"]),
    st.lists(SEGMENTS, max_size=6),
    BODIES,
    st.booleans(),
)
def test_any_path(page: Page, method: str, parts: list[str], body: bytes, known: bool) -> None:
    before = page.untouchable()
    path = "/".join(["", TOKEN] if known else [""]) + "/" + "/".join(parts)
    path = path.encode("utf-8", "replace").decode()  # as uvicorn hands it on
    assert_harmless(page, *page.ask(method, path, body, "application/json"), before)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [("POST", "change"), ("POST", "segment"), ("PUT", "decision"), ("PUT", "mask")]
    ),
    st.sampled_from(["0", "1", "2", "9" * 5000]),
    BODIES,
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
)
def test_any_body(page: Page, to: tuple[str, str], number: str, body: bytes, at: tuple) -> None:
    method, route = to
    before = page.untouchable()
    kind = "application/octet-stream" if route == "mask" else "application/json"
    query = "x={}&y={}&width={}&height={}".format(*at)
    path = f"/{TOKEN}/api/images/{number}/{route}"
    assert_harmless(page, *page.ask(method, path, body, kind, query), before)


def test_the_page_works_at_all(page: Page) -> None:
    assert page.ask("GET", f"/{TOKEN}/")[0] == 200
    assert page.ask("GET", f"/{TOKEN}/api/images/0/mask")[0] == 200
    body = b'{"verdict": "rejected"}'
    path = f"/{TOKEN}/api/images/0/decision"
    assert page.ask("PUT", path, body, "application/json")[0] == 200
    assert SECRET not in page.ask("GET", f"/{TOKEN}/api/images/2/picture")[1]
