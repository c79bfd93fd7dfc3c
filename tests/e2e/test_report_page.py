"""The report in a real browser, from the disk."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import BrowserContext, Page, expect

from lora_prep import imageio
from lora_prep.cli import main
from tests.fakes.browser import browser, watched
from tests.report.made import (
    add,
    embed,
    face,
    photo,
    record_mask,
    record_variant,
    remember_faces,
)

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
NAMES = {
    "<img src=x onerror=alert(1)>.png": 0.9,
    "</script><svg onload=alert(2)>.png": 0.8,
    "'\"&amp;`${alert(3)}`.png": 0.7,
    "evil\u202egnp.png": 0.1,
    "plain.jpg": 0.6,
}
SHOWN = [name.replace("\u202e", "\\u202e") for name in sorted(NAMES)]
MANY = 2000


@pytest.fixture(scope="module")
def chromium() -> Iterator[BrowserContext]:
    with browser() as context:
        yield context


def written(root: Path, *options: str) -> Path:
    result = CliRunner().invoke(main, ["report", str(root), *options])
    assert result.exit_code == 0, result.output
    return root / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of five images with hostile names, one without a mask, one of somebody else."""
    root = tmp_path_factory.mktemp("evil") / "<b>data"
    for i, name in enumerate(NAMES):
        add(root, name, i, mask=name != "plain.jpg", caption=f"Nr{i}x {EVIL}")
        remember_faces(root, name, face(30, 30 + i))
        if i < 3:
            record_mask(root, name)
    hashes = (0, 1, 0xFF00, 0xFF0000, 0xFF000000)  # those of the first two are near
    rows = zip(NAMES.items(), hashes, strict=True)
    embed(root, {name: [(cosine, bits)] for (name, cosine), bits in rows})
    parent, matrix = next(iter(NAMES)), [[0.866, -0.5, 0], [0.5, 0.866, 0]]
    for i in range(2):
        path = f"augmented/images/<i>{i}.png"
        record_variant(root, parent, i, path, kept=0.93, matrix=matrix, mirrored=False)
    (root / "priors").mkdir()
    (root / "priors" / f"0-{'a' * 40}.png").write_bytes(imageio.encode_image(photo(3), "png"))
    return written(root, "--recursive")


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def page(chromium: BrowserContext, report: Path, requests: list[str]) -> Iterator[Page]:
    """The report, opened; nothing may be logged as an error."""
    page = chromium.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(f"it said {dialog.message}"))
    with watched(page):
        page.goto(report.as_uri())
        yield page
    page.close()


def names(page: Page) -> list[str]:
    """The names in the gallery, in order."""
    return page.locator("#grid .name").all_text_contents()


def focused(page: Page) -> str:
    """Name of the card that has the focus. The page moves it a moment after a key."""
    page.wait_for_timeout(100)
    return page.locator(".card:focus .name").text_content() or ""


def test_asks_nothing_of_the_network(page: Page, report: Path, requests: list[str]) -> None:
    for section in page.locator("section").all():
        section.scroll_into_view_if_needed()
    page.locator("#grid").scroll_into_view_if_needed()
    expect(page.locator("#grid svg image.photo")).to_have_count(5)
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]


def test_names_and_captions_with_markup_are_inert(page: Page) -> None:
    assert names(page) == SHOWN
    assert page.title() == "<b>data – lora-prep report"
    assert page.locator("img, script:not([type]) ~ script, svg[onload], main b b").count() == 0
    page.get_by_role("button", name=SHOWN[1]).click()
    assert EVIL in page.locator("#viewer-facts").inner_text()
    assert page.locator("#viewer-name").inner_text() == SHOWN[1]
    assert page.locator("#viewer img, #viewer script").count() == 0


def test_pictures_and_their_masks_are_drawn(page: Page) -> None:
    first = page.locator("#grid svg").first
    first.wait_for()
    size = first.locator("image.photo").evaluate(
        """async (image) => {
            const copy = new Image();
            copy.src = image.getAttribute("href");
            await copy.decode();
            return [copy.naturalWidth, copy.naturalHeight];
        }"""
    )
    assert size == [128, 96]
    for view, visible in {
        "image": [],
        "line": ["edge"],
        "overlay": ["edge", "shade"],
        "mask": ["paper", "shade"],
    }.items():
        page.locator(f"input[value={view}]").check()
        for part in ("edge", "shade", "paper"):
            expect(first.locator(f".{part}")).to_have_css(
                "visibility", "visible" if part in visible else "hidden"
            )


def test_filters_by_text_issue_and_state(page: Page) -> None:
    page.locator("#text").fill("nr4x PLAIN")
    assert names(page) == ["plain.jpg"]
    expect(page.locator("#count")).to_have_text("1 of 5 images")
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#count")).to_have_text("5 of 5 images")
    page.locator("#state").select_option("no mask")
    assert names(page) == ["plain.jpg"]
    page.locator("#state").select_option("")
    page.locator("#code").select_option("E006")
    assert names(page) == ["evil\\u202egnp.png"]
    page.locator("#text").fill("nowhere")
    assert names(page) == []
    expect(page.locator("#count")).to_have_text("0 of 5 images")


def test_a_kind_of_issue_leads_to_its_images(page: Page) -> None:
    page.locator("tr", has_text="E006").get_by_role("button").click()
    expect(page.locator("#count")).to_have_text("1 of 5 images")
    expect(page.locator(".card:focus .name")).to_have_text("evil\\u202egnp.png")


def test_sorts_by_what_was_measured(page: Page) -> None:
    page.locator("#sort").select_option("similarity")
    ordered = sorted(NAMES, key=lambda name: NAMES[name])
    assert names(page) == [name.replace("\u202e", "\\u202e") for name in ordered]
    page.locator("#order").click()
    assert names(page)[0] == "<img src=x onerror=alert(1)>.png"
    page.locator("#sort").select_option("coverage")
    assert names(page)[-1] == "plain.jpg"  # what has no number comes last either way


def test_all_of_it_works_from_the_keyboard(page: Page) -> None:
    page.locator("#views input:checked").focus()
    for _ in range(2):  # over Reset
        page.keyboard.press("Tab")
    assert focused(page) == SHOWN[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert focused(page) == SHOWN[1]
    page.keyboard.press("End")
    assert focused(page) == SHOWN[-1]
    page.keyboard.press("ArrowRight")
    assert focused(page) == SHOWN[-1]
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-name")).to_have_text(SHOWN[1])
    page.keyboard.press("m")
    expect(page.locator("body")).to_have_attribute("data-view", "mask")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).not_to_be_visible()
    assert focused(page) == SHOWN[1]
    outline = page.locator(".card:focus").evaluate("(e) => getComputedStyle(e).outlineWidth")
    assert outline == "3px"
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("m")
    expect(page.locator("body")).to_have_attribute("data-view", "mask")


def test_arrows_move_by_rows(page: Page) -> None:
    page.set_viewport_size({"width": 500, "height": 800})
    columns = page.locator("#grid").evaluate(
        "(e) => getComputedStyle(e).gridTemplateColumns.split(' ').length"
    )
    assert 1 < columns < 5
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowDown")
    assert focused(page) == SHOWN[columns]
    page.keyboard.press("ArrowUp")
    assert focused(page) == SHOWN[0]


def test_shows_what_was_made_of_the_images(page: Page) -> None:
    twins = page.locator("#twins")
    expect(twins.locator("h3")).to_have_text("2 images, cosine 0.98")
    expect(twins.locator("figure")).to_have_count(2)
    augmented = page.locator("#augmented")
    augmented.scroll_into_view_if_needed()
    expect(augmented.locator("h3")).to_contain_text("<img src=x onerror=alert(1)>.png 2 variants")
    expect(augmented.locator("figcaption")).to_have_text(
        ["original", *2 * ["turned +30°, 93% of the mask kept"]]
    )
    expect(augmented.locator("svg image.shade")).to_have_count(3)
    priors = page.locator("#priors")
    priors.scroll_into_view_if_needed()
    expect(priors.locator("svg image.photo")).to_have_count(1)


def test_the_erosion_is_shown_near_with_the_edge_before(page: Page) -> None:
    erosion = page.locator("#erosion")
    erosion.scroll_into_view_if_needed()
    expect(erosion.locator("figure")).to_have_count(3)  # the masks that lora-prep made
    expect(erosion.locator(".wider").first).to_have_css("visibility", "visible")
    expect(erosion.locator("figcaption").first).to_contain_text("--erode 2% (assumed)")
    box = erosion.locator("svg").first.get_attribute("viewBox") or ""
    assert float(box.split()[2]) < 100  # of 128
    edge, wider = (erosion.locator(f"path.{c}").first.bounding_box() for c in ("edge", "wider"))
    assert edge
    assert wider
    assert wider["x"] < edge["x"]
    assert wider["width"] > edge["width"]


def brightness(page: Page) -> float:
    """Of the ground, 0 to 255."""
    page.locator("body").wait_for()
    colour = page.locator("body").evaluate("(e) => getComputedStyle(e).backgroundColor")
    return sum(float(n) for n in colour.removeprefix("rgb(").removesuffix(")").split(",")) / 3


def test_is_light_or_dark_as_the_system_says_or_as_chosen(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    assert brightness(page) > 200
    page.emulate_media(color_scheme="dark")
    assert brightness(page) < 60
    page.get_by_role("button", name="Theme: as the system").click()
    assert brightness(page) > 200
    page.get_by_role("button", name="Theme: light").click()
    page.emulate_media(color_scheme="light")
    assert brightness(page) < 60
    page.get_by_role("button", name="Theme: dark").click()
    assert brightness(page) > 200


def png(kind: int, pixel: bytes, size: int = 24) -> bytes:
    """A picture of one colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + pixel * size) * size
    head = struct.pack(">IIBBBBB", size, size, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_two_thousand_images_are_drawn_as_they_are_seen(
    chromium: BrowserContext, tmp_path: Path
) -> None:
    for folder in ("faces", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(MANY):
        colour = bytes((i % 256, i // 256 * 30, 90))
        (tmp_path / "faces" / f"i{i:04}.png").write_bytes(png(2, colour))
        (tmp_path / "masks" / f"i{i:04}.png").write_bytes(png(0, b"\xff"))
    path = written(tmp_path, "--thumbnail-size", "32")
    page = chromium.new_page()
    with watched(page):
        page.goto(path.as_uri())
        expect(page.locator("#count")).to_have_text(f"{MANY} of {MANY} images")
        page.locator("#grid svg").first.wait_for()
        assert page.locator("#grid li").count() == MANY
        assert page.locator("#grid svg").count() < 200
        page.locator(".card").first.focus()
        page.keyboard.press("End")
        last = page.locator(".card:focus")
        expect(last.locator(".name")).to_have_text(f"i{MANY - 1}.png")
        expect(last.locator("svg")).to_be_visible()
        assert page.locator("#grid svg").count() < 200
        page.locator("#text").fill("i0777")
        expect(page.locator("#count")).to_have_text(f"1 of {MANY} images")
        expect(page.locator("#grid svg")).to_have_count(1)
    page.close()
