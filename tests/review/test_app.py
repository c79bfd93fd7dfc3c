"""Who may ask, and what for: every refusal by a real request to the real server."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from lora_prep import decisions, imageio
from lora_prep.backends import SegmenterSpec
from lora_prep.dataset import Dataset
from lora_prep.errors import DatasetError, UsageError
from lora_prep.review import app
from lora_prep.review.session import Session
from tests.fakes.review_server import TOKEN, Served, serving
from tests.review.conftest import HEIGHT, WIDTH, on_disk, weights

BYTES = {"Content-Type": "application/octet-stream"}


def version(page: Served, number: int) -> str:
    return page.ask(f"api/images/{number}/mask").headers["X-Version"]


def put(
    page: Served,
    number: int,
    patch: np.ndarray,
    x: int = 0,
    y: int = 0,
    **headers: str,
) -> object:
    rows, columns = patch.shape
    given = {**BYTES, "X-Version": version(page, number)} | headers
    path = f"api/images/{number}/mask?x={x}&y={y}&width={columns}&height={rows}"
    return page.ask(path, "PUT", patch.tobytes(), given)


def test_the_page_and_its_headers(page: Served) -> None:
    answer = page.ask("")
    assert answer.status == 200
    assert b"<title>lora-prep review</title>" in answer.body
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "server" not in answer.headers
    for name in app.PAGES:
        assert page.ask(name).status == 200


def test_nothing_on_the_page_is_inline_or_from_elsewhere() -> None:
    for path in app.STATIC.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
    html = (app.STATIC / "index.html").read_text("utf-8")
    assert "style=" not in html
    assert "onclick" not in html


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "api", "%00"])
def test_without_the_token_nothing(page: Served, token: str) -> None:
    for path in ("", "api/images", "api/images/0/picture", "app.js"):
        answer = page.ask_exactly(f"/{token}/{path}".replace("//", "/"))
        assert answer.status == 403, path
        assert b"a.png" not in answer.body


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", "0.0.0.0", ""]
)
def test_a_foreign_host_is_refused(page: Served, host: str) -> None:
    answer = page.ask("api/images", headers={"Host": host})
    assert answer.status == 400
    assert b"a.png" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:9000"])
def test_this_machine_may_be_asked_through_a_tunnel(page: Served, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert page.ask("api/images", headers=headers).status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", ""]
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_foreign_origin_is_refused(page: Served, origin: str, method: str) -> None:
    path = "api/images" if method == "GET" else "api/images/0/decision"
    body = None if method == "GET" else {"verdict": "rejected"}
    assert page.ask(path, method, body, {"Origin": origin}).status == 403
    assert all(row["verdict"] is None for row in page.session.images())


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "GET", 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "GET", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "PUT", 403),
        (
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "iframe",
            },
            "GET",
            403,
        ),
        (
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
            },
            "GET",
            200,
        ),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, "GET", 200),
        ({"Sec-Fetch-Site": "none"}, "GET", 200),
    ],
)
def test_other_pages_may_link_to_the_page_and_nothing_else(
    page: Served, headers: dict[str, str], method: str, status: int
) -> None:
    path, body = ("", None) if method == "GET" else ("api/images/0/decision", {"verdict": None})
    assert page.ask(path, method, body, headers).status == status


@pytest.mark.parametrize(
    "path",
    [
        "../../../../../../etc/passwd",
        "..%2f..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "app.js/../../session.py",
        "..%5c..%5csession.py",
        "session.py",
        "static/app.js",
        "api/images/../../app.py",
        "api/images/0%2f..%2f..",
        "api/images/a.png/picture",
        "api/images/-1/picture",
        "api/images/0x1/picture",
        "api/images/1.0/mask",
        "api/images/3/picture",
        "api/images/99999999999999999999/mask",
        "%00",
    ],
)
def test_no_other_file_is_to_be_had(page: Served, path: str) -> None:
    answer = page.ask(path)
    assert answer.status == 404
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def test_links_out_of_the_data_set_are_not_followed(data: Dataset, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    shutil.copy(data.images / "a.png", secret)
    (data.images / "link.png").symlink_to(secret)
    outside = tmp_path / "outside.png"
    outside.write_bytes(imageio.encode_mask(weights(9)))
    before = outside.read_bytes()
    (data.masks / "b.png").unlink()
    (data.masks / "b.png").symlink_to(outside)
    session = Session(Dataset.at(data.images))
    numbers = {row["name"]: row["id"] for row in session.images()}
    with serving(session) as page:
        link, b = numbers["link.png"], numbers["b.png"]
        for path in (f"{link}/picture", f"{link}/thumbnail", f"{link}/mask", f"{b}/mask"):
            answer = page.ask(f"api/images/{path}")
            assert (answer.status, b"out of the data set" in answer.body) == (404, True)
        assert page.ask(f"api/images/{link}/decision", "PUT", {"verdict": "rejected"}).status == 404
        patch = np.zeros((HEIGHT, WIDTH), np.uint8)
        assert put(page, b, patch, **{"X-Version": "none"}).status == 404
    assert outside.read_bytes() == before


def test_a_link_within_the_data_set_is_fine(data: Dataset) -> None:
    (data.root / "originals").mkdir()
    (data.images / "a.png").rename(data.root / "originals" / "a.png")
    (data.images / "a.png").symlink_to("../originals/a.png")
    with serving(Session(data)) as page:
        assert page.ask("api/images/0/picture").status == 200


def test_the_picture_is_what_trainers_see_and_no_larger_than_the_screen(data: Dataset) -> None:
    large = np.zeros((100, 3000, 3), np.uint8)
    (data.images / "a.png").write_bytes(imageio.encode_image(large, "png"))
    with serving(Session(data)) as page:
        small = imageio.decode_image(page.ask("api/images/0/picture").body)
        full = imageio.decode_image(page.ask("api/images/0/picture?full").body)
        mask = page.ask("api/images/0/mask")
    assert small.shape == (68, 2048, 3)
    assert full.shape == (100, 3000, 3)
    assert (mask.headers["X-Width"], mask.headers["X-Height"]) == ("3000", "100")


def test_a_thumbnail_is_dark_where_the_mask_ignores(data: Dataset) -> None:
    """With a mask that cannot be read, as bright as the picture."""
    white = np.zeros((HEIGHT, WIDTH), np.uint8)
    white[:, WIDTH // 2 :] = 255
    (data.masks / "a.png").write_bytes(imageio.encode_mask(white))
    (data.masks / "b.png").write_bytes(b"broken")
    with serving(Session(data)) as page:
        answers = [page.ask(f"api/images/{n}/thumbnail") for n in (0, 1)]
    small, whole = (imageio.decode_image(answer.body).astype(float) for answer in answers)
    assert small.shape == (HEIGHT, WIDTH, 3)
    left, right = np.s_[48:, :30], np.s_[48:, 50:]
    assert small[left].mean() == pytest.approx(0.45 * small[right].mean(), rel=0.1)
    assert whole[left].mean() == pytest.approx(whole[right].mean(), rel=0.1)


def test_a_mask_comes_as_its_bytes(page: Served) -> None:
    answer = page.ask("api/images/1/mask")
    assert answer.body == weights(1).tobytes()


def test_a_patch_is_saved_and_the_rest_stays_bit_for_bit(page: Served, data: Dataset) -> None:
    patch = np.full((5, 7), 255, np.uint8)
    answer = put(page, 1, patch, x=11, y=20)
    assert answer.status == 200
    expected = weights(1)
    expected[20:25, 11:18] = 255
    assert np.array_equal(on_disk(data, "b.png"), expected)
    assert answer.json["version"] == version(page, 1)


BROKEN = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("query", "body", "headers", "status"),
    [
        ("x=0&y=0&width=4&height=4", BROKEN.tobytes()[:-1], {}, 422),
        ("x=0&y=0&width=4&height=4", BROKEN.tobytes() + b"\0", {}, 413),
        ("x=0&y=0&width=4&height=4", b"\0" * 5_000_000, {}, 413),
        ("x=78&y=0&width=4&height=4", BROKEN.tobytes(), {}, 422),
        ("x=0&y=-1&width=4&height=4", BROKEN.tobytes(), {}, 422),
        ("x=0&y=0&width=81&height=4", b"\0" * 324, {}, 422),
        ("x=0&y=0&width=-4&height=-4", BROKEN.tobytes(), {}, 422),
        ("x=0&y=0&width=1e9&height=4", BROKEN.tobytes(), {}, 422),
        ("x=0&y=0&width=4", BROKEN.tobytes(), {}, 422),
        ("x=0&y=0&width=4&height=4", BROKEN.tobytes(), {"X-Version": "0" * 64}, 412),
        ("x=0&y=0&width=4&height=4", BROKEN.tobytes(), {"X-Version": ""}, 412),
        ("x=0&y=0&width=4&height=4", BROKEN.tobytes(), {"Content-Type": "text/plain"}, 415),
        (
            "x=0&y=0&width=4&height=4",
            imageio.encode_mask(BROKEN),
            {"Content-Type": "image/png"},
            415,
        ),
    ],
)
def test_what_is_no_patch_is_refused(
    page: Served, data: Dataset, query: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    before = (data.masks / "a.png").read_bytes()
    given = {**BYTES, "X-Version": version(page, 0)} | headers
    try:
        answer = page.ask(f"api/images/0/mask?{query}", "PUT", body, given)
    except (BrokenPipeError, ConnectionResetError):  # it did not even read to the end
        assert status == 413
    else:
        assert answer.status == status, answer.body
    assert (data.masks / "a.png").read_bytes() == before
    assert not (data.state / "trash").exists()


def test_a_patch_without_a_version_is_refused(page: Served) -> None:
    query = "x=0&y=0&width=4&height=4"
    answer = page.ask(f"api/images/0/mask?{query}", "PUT", BROKEN.tobytes(), BYTES)
    assert answer.status == 428


def test_what_was_changed_meanwhile_is_not_written_over(page: Served, data: Dataset) -> None:
    seen = version(page, 0)
    (data.masks / "a.png").write_bytes(imageio.encode_mask(weights(7)))
    answer = put(page, 0, BROKEN, **{"X-Version": seen})
    assert answer.status == 412
    assert "changed by somebody else" in answer.json["error"]
    assert np.array_equal(on_disk(data, "a.png"), weights(7))


@pytest.mark.parametrize("damage", ["cut", "text", "size"])
def test_a_mask_that_cannot_be_read_is_replaced_as_a_whole_only(
    page: Served, data: Dataset, damage: str
) -> None:
    good = (data.masks / "a.png").read_bytes()
    bad = {
        "cut": good[: len(good) // 2],
        "text": b"this is no mask",
        "size": imageio.encode_mask(weights(0)[:-1]),
    }[damage]
    (data.masks / "a.png").write_bytes(bad)
    answer = page.ask("api/images/0/mask")
    assert answer.status == 422
    assert answer.headers["X-Width"] == str(WIDTH)
    assert put(page, 0, BROKEN, **{"X-Version": answer.headers["X-Version"]}).status == 422
    assert (data.masks / "a.png").read_bytes() == bad
    assert put(page, 0, weights(5), **{"X-Version": answer.headers["X-Version"]}).status == 200
    assert np.array_equal(on_disk(data, "a.png"), weights(5))
    (copy,) = (data.state / "trash").glob("*/masks/a.png")
    assert copy.read_bytes() == bad


def test_a_damaged_image_is_said(page: Served, data: Dataset) -> None:
    (data.images / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    for path in ("picture", "mask"):
        answer = page.ask(f"api/images/0/{path}")
        assert answer.status == 422
        assert answer.json["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[1, 2]",
        b"[" * 30_000,
        b'{"clicks": [[10, 10]]}',
        b'{"clicks": [["a", "b", true]]}',
        b'{"clicks": 7}',
        b'{"clicks": [[10, 10, false]]}',
        b'{"clicks": [[1000, 10, true]]}',
        b'{"clicks": [[NaN, 10, true]]}',
        b'{"box": [10, 10, 5, 20]}',
        b'{"box": [10, 10, 500, 20]}',
        b'{"box": [0, 0, 1, 1, 1]}',
        b'{"box": "0123"}',
        b"{}",
    ],
)
def test_what_points_at_nothing_is_refused(page: Served, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = page.ask("api/images/0/segment", "POST", body, headers)
    assert answer.status == 422
    assert answer.json["error"]


def test_requests_have_a_limit_and_a_kind(page: Served) -> None:
    path = "api/images/0/decision"
    headers = {"Content-Type": "application/json"}
    assert page.ask(path, "PUT", b" " * 70_000, headers).status == 413
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert page.ask(path, "PUT", b"verdict=rejected", form).status == 415
    assert page.ask(path, "POST", {"verdict": "rejected"}).status == 405
    assert page.ask(path, "PUT", {"verdict": "maybe"}).status == 422


@pytest.mark.parametrize(
    "value",
    [
        {"operation": "explode"},
        {"operation": ["erode"]},
        {"operation": "erode", "amount": "2"},
        {"operation": "erode", "amount": 2},
        {"operation": "erode", "amount": "1000px"},
        {"operation": "feather", "amount": "-2%"},
    ],
)
def test_an_operation_that_makes_no_sense_is_refused(page: Served, value: object) -> None:
    answer = page.ask("api/images/0/change", "POST", value)
    assert answer.status == 422
    assert answer.json["error"]


def test_click_to_segment(page: Served, data: Dataset) -> None:
    answer = page.ask("api/images/0/segment", "POST", {"clicks": [[30, 30, True]]})
    disc = imageio.decode_image((data.images / "a.png").read_bytes())[..., 0] > 128
    found = np.frombuffer(answer.body, np.uint8).reshape(HEIGHT, WIDTH)
    assert set(np.unique(found)) == {0, 255}
    assert np.count_nonzero((found > 0) & disc) / np.count_nonzero((found > 0) | disc) > 0.85
    assert np.array_equal(on_disk(data, "a.png"), weights(0))  # only saving writes


def test_a_model_that_is_not_to_be_had_is_said(session: Session, tmp_path: Path) -> None:
    spec = SegmenterSpec("sam2", model=str(tmp_path / "no.pt"), config="", device="cpu")
    with serving(session, spec) as page:
        answer = page.ask("api/images/0/segment", "POST", {"clicks": [[30, 30, True]]})
        assert answer.status == 503
        assert "no.pt" in answer.json["error"]
        assert page.ask("api/images/0/picture").status == 200


def test_names_that_are_no_unicode_can_be_listed(data: Dataset) -> None:
    name = b"\xff<b>.png".decode("utf-8", "surrogateescape")
    shutil.copy(data.images / "a.png", data.images / name)
    with serving(Session(Dataset.at(data.images))) as page:
        assert name in [row["name"] for row in page.ask("api/images").json["images"]]


def test_listens_to_this_machine_alone() -> None:
    with app.listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UsageError, match="cannot listen at port"):
            app.listen(listening.getsockname()[1])


def test_a_palette_mask_keeps_the_weights_that_trainers_read(page: Served, data: Dataset) -> None:
    from PIL import Image

    picture = Image.fromarray((weights(3) > 128).astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(data.masks / "a.png")
    before = on_disk(data, "a.png")
    assert put(page, 0, BROKEN, x=2, y=2).status == 200
    after = cv2.imread(str(data.masks / "a.png"), cv2.IMREAD_UNCHANGED)
    before[2:6, 2:6] = 0
    assert np.array_equal(after, before)


def test_a_saved_mask_that_could_not_be_noted_is_answered_with_a_warning(
    page: Served, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DatasetError("no space left")

    monkeypatch.setattr(decisions, "note_edit", full)
    answer = put(page, 0, np.full((1, 1), 9, np.uint8))
    assert answer.status == 200
    assert "no space left" in str(answer.json["warning"])
    assert answer.json["version"] == version(page, 0)
