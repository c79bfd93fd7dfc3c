"""The web's side: who may ask, and what for. Knows no path; images have numbers.

Only this machine is listened to. A request has to name this machine as its host (a foreign page
whose name was pointed here cannot), come from the page itself or from no page at all, and carry the
token of this run in its path. Everything else is refused before it is looked at.
"""

import json
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_prep.backends.interactive import Click, Prompts
from lora_prep.decisions import Verdict
from lora_prep.errors import BackendError, DatasetError, ItemError, LoraPrepError, UsageError
from lora_prep.masks import Margin
from lora_prep.review.segment import Clicking
from lora_prep.review.session import Session, Version

HOST = "127.0.0.1"
STATIC = Path(__file__).parent / "static"
PAGES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "app.js": ("app.js", "text/javascript; charset=utf-8"),
    "editor.js": ("editor.js", "text/javascript; charset=utf-8"),
    "mask.js": ("mask.js", "text/javascript; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
"""All that is served from the disk under a name."""

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

MAX_JSON = 64 * 1024
"""Bytes of a request that is no mask."""

STATUS = {"not-found": 404, "changed": 412, "shared-stem": 409, "too-long": 413}
"""By the code of an ItemError; 422 for all others."""

OPERATIONS = ("erode", "feather", "fill", "invert", "clear", "all", "restore")

Handler = Callable[[Request], Awaitable[Response]]


class Guard:
    """Refuses what does not come from the page, and hangs the security headers on every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server for each request."""
        if scope["type"] != "http":
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY)
            await send(message)

        given = scope["path"].removeprefix("/").partition("/")[0]
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            await _refused("the address lacks this run's token", 403)(scope, receive, secured)
        elif not _is_from_the_page(scope["method"], Headers(scope=scope)):
            await _refused("other pages may not ask", 403)(scope, receive, secured)
        else:
            await self.app(scope, receive, secured)


def _is_from_the_page(method: str, headers: Headers) -> bool:
    """By what browsers say of a request; programs that are no browsers say nothing.

    A link to the page on another page, such as a terminal in the browser, may be followed.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is not None and origin != f"http://{headers.get('host', '')}":
        return False
    if site in ("same-origin", "none"):
        return True
    opened = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return method == "GET" and opened == ("navigate", "document")


def application(session: Session, clicking: Clicking, token: str) -> Starlette:
    """The page below `/<token>/`."""
    handlers = _Handlers(session, clicking)
    routes = [
        Route("/api/images", handlers.images),
        Route("/api/images/{number}/picture", handlers.picture),
        Route("/api/images/{number}/thumbnail", handlers.thumbnail),
        Route("/api/images/{number}/mask", handlers.mask, methods=["GET"]),
        Route("/api/images/{number}/mask", handlers.save, methods=["PUT"]),
        Route("/api/images/{number}/change", handlers.change, methods=["POST"]),
        Route("/api/images/{number}/look", handlers.look, methods=["POST"]),
        Route("/api/images/{number}/segment", handlers.segment, methods=["POST"]),
        Route("/api/images/{number}/decision", handlers.decide, methods=["PUT"]),
        Route("/{page}", _page),
        Route("/", _page),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[
            Middleware(TrustedHostMiddleware, [HOST, "localhost"], www_redirect=False),
            Middleware(Guard, token=token),
        ],
        exception_handlers={LoraPrepError: _told, HTTPException: _told},
    )


def listen(port: int) -> socket.socket:
    """A socket on this machine alone; port 0 takes any that is free. Raises UsageError."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"cannot listen at port {port} ({error.strerror}): give another --port, or none"
        ) from error
    return listening


def server(app: Starlette) -> uvicorn.Server:
    """What serves it: `run(sockets=[listen(port)])` returns after Ctrl-C, or `should_exit`."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


class _Handlers:
    def __init__(self, session: Session, clicking: Clicking) -> None:
        self.session = session
        self.clicking = clicking

    async def images(self, request: Request) -> Response:
        rows = await run_in_threadpool(self.session.images)
        root = self.session.dataset.root
        return _json({"title": root.name, "segmenter": self.clicking.spec.name, "images": rows})

    async def picture(self, request: Request) -> Response:
        full = "full" in request.query_params
        data = await run_in_threadpool(self.session.shown, _number(request), full=full)
        return Response(data, media_type="image/jpeg")

    async def thumbnail(self, request: Request) -> Response:
        data = await run_in_threadpool(self.session.thumbnail, _number(request))
        return Response(data, media_type="image/jpeg")

    async def mask(self, request: Request) -> Response:
        number = _number(request)
        try:
            version = await run_in_threadpool(self.session.mask, number)
        except ItemError as error:
            # The page says why, and what is painted then replaces the file as a whole.
            if error.code == "not-found":
                raise
            headers = {"X-Version": await run_in_threadpool(self.session.version, number)}
            height, width = await run_in_threadpool(self.session.size, number)
            headers |= {"X-Width": str(width), "X-Height": str(height)}
            return _json({"error": _text(str(error)), "code": error.code}, 422, headers)
        return _pixels(version)

    async def save(self, request: Request) -> Response:
        number = _number(request)
        x, y, width, height = (_integer(request, name) for name in ("x", "y", "width", "height"))
        rows, columns = await run_in_threadpool(self.session.size, number)
        if width > columns or height > rows or min(x, y, width, height) < 0:
            raise ItemError(f"{width}×{height} pixels do not fit the image", code="wrong-size")
        data = await _body(request, width * height, "application/octet-stream")
        if len(data) != width * height:
            raise ItemError(f"{len(data)} bytes are not {width}×{height}", code="wrong-size")
        if (version := request.headers.get("x-version")) is None:
            raise HTTPException(428, "X-Version has to say which version was edited")
        patch = np.frombuffer(data, np.uint8).reshape(height, width)
        saved = await run_in_threadpool(self.session.save, number, patch, x, y, version)
        return _json({"version": saved.name, "warning": _text(saved.warning)})

    async def change(self, request: Request) -> Response:
        value = await _value(request)
        operation, text = value.get("operation"), value.get("amount", "0")
        if operation not in OPERATIONS or not isinstance(text, str):
            raise ItemError(f"there is no operation {operation!r}")
        margin = Margin.parse(text)
        if operation == "feather" and margin.amount < 0:
            raise ItemError(f"{text} is negative: a feather only goes inwards")
        mask = await run_in_threadpool(self.session.changed, _number(request), operation, margin)
        return Response(mask.tobytes(), media_type="application/octet-stream")

    async def look(self, request: Request) -> Response:
        number = _number(request)
        seen = await run_in_threadpool(self.session.seen, number)
        said = await run_in_threadpool(self.clicking.look, seen, lambda: self.session.image(number))
        return _json({"segmenter": said})

    async def segment(self, request: Request) -> Response:
        number, value = _number(request), await _value(request)
        height, width = await run_in_threadpool(self.session.size, number)
        prompts = _prompts(value, width, height)
        seen = await run_in_threadpool(self.session.seen, number)
        mask = await run_in_threadpool(
            self.clicking.segment, seen, lambda: self.session.image(number), prompts
        )
        pixels = mask.view(np.uint8) * np.uint8(255)
        return Response(pixels.tobytes(), media_type="application/octet-stream")

    async def decide(self, request: Request) -> Response:
        verdict = (await _value(request)).get("verdict")
        if verdict is not None and verdict not in list(Verdict):
            raise ItemError(f"there is no verdict {verdict!r}")
        chosen = None if verdict is None else Verdict(verdict)
        return _json(await run_in_threadpool(self.session.decide, _number(request), chosen))


async def _page(request: Request) -> Response:
    """One of the page's own files; there are no others to be had."""
    found = PAGES.get(request.path_params.get("page", ""))
    if found is None:
        raise HTTPException(404, "there is no such page")
    name, kind = found
    return Response((STATIC / name).read_bytes(), media_type=kind)


async def _told(_request: Request, error: Exception) -> Response:
    """What is wrong, as JSON, with the status that fits."""
    match error:
        case HTTPException():
            return _refused(error.detail, error.status_code)
        case ItemError():
            return _refused(str(error), STATUS.get(error.code, 422), error.code)
        case BackendError():
            return _refused(str(error), 503, "no-model")
        case DatasetError():
            return _refused(str(error), 409, "dataset")
        case _:
            return _refused(str(error), 422)


async def _body(request: Request, limit: int, kind: str) -> bytes:
    """The request's content, never more than the limit in memory."""
    if request.headers.get("content-type", "").partition(";")[0] != kind:
        raise HTTPException(415, f"this wants {kind}")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise HTTPException(413, f"more than the {limit} bytes that belong here")
    return bytes(content)


async def _value(request: Request) -> Mapping[str, Any]:
    try:
        value = json.loads(await _body(request, MAX_JSON, "application/json"))
    except (ValueError, RecursionError) as error:
        raise ItemError("that is no JSON") from error
    if not isinstance(value, dict):
        raise ItemError("an object is wanted")
    return value


def _prompts(value: Mapping[str, Any], width: int, height: int) -> Prompts:
    """Raises ItemError for what are no points or no box inside the image."""
    given, box = value.get("clicks", []), value.get("box")
    try:
        clicks = [Click(float(x), float(y), bool(inside)) for x, y, inside in _list(given)]
        corners = None
        if box is not None:
            x0, y0, x1, y1 = (float(v) for v in _list(box))
            corners = (x0, y0, x1, y1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ItemError("clicks are [x, y, inside], a box is [x0, y0, x1, y1]") from error
    inside = corners is None or (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height)
    points = all(0 <= c.x <= width and 0 <= c.y <= height for c in clicks)
    if not (inside and points) or len(clicks) > 100:
        raise ItemError("the points and the box have to lie in the image", code="wrong-size")
    return Prompts(clicks, corners)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _number(request: Request) -> int:
    text = str(request.path_params["number"])
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ItemError("there is no such image", code="not-found")
    return int(text)


def _integer(request: Request, name: str) -> int:
    try:
        return int(request.query_params[name])
    except (KeyError, ValueError) as error:
        raise ItemError(f"{name} has to be a whole number") from error


def _pixels(version: Version) -> Response:
    """A byte a pixel: a canvas would round, and some browsers add noise to what is read back."""
    height, width = version.mask.shape
    headers = {"X-Width": str(width), "X-Height": str(height), "X-Version": version.name}
    data = version.mask.tobytes()
    return Response(data, headers=headers, media_type="application/octet-stream")


def _refused(message: str, status: int, code: str = "") -> Response:
    return _json({"error": _text(message), "code": code}, status)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """As ASCII, since file names may be no valid Unicode."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _text(message: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
