"""The review page in a real browser, with real keys and a real mouse; what counts is the disk."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from lora_prep import decisions, imageio
from lora_prep.backends import SegmenterSpec
from lora_prep.dataset import Dataset
from lora_prep.review.session import Session
from lora_prep.types import Issue, Severity
from sample_data.photos import photographs
from sample_data.portraits import Portrait, draw_portrait
from tests.fakes.browser import browser, watched
from tests.fakes.review_server import GRABCUT, Served, serving
from tests.fakes.tiny_faces import SAM2, SAM2_CONFIG

SIDE = 320
NAMES = ("ada.png", "bob <b>&.png", "cleo.png")


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    with browser() as context:
        context.set_default_timeout(180_000)
        expect.set_options(timeout=180_000)
        yield context


@pytest.fixture(scope="module")
def people() -> list[Portrait]:
    easy = {"scale": (0.35, 0.55), "max_tilt": 5.0, "max_yaw": 5.0}
    return [draw_portrait(seed, size=(SIDE, SIDE), people=1, **easy) for seed in (3, 1, 4)]


@pytest.fixture
def data(people: list[Portrait], tmp_path: Path) -> Dataset:
    """Portraits, and masks in which every weight occurs."""
    (tmp_path / "data" / "faces").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    for name, person in zip(NAMES, people, strict=True):
        file = tmp_path / "data" / "faces" / name
        file.write_bytes(imageio.encode_image(person.image, "png"))
        mask = tmp_path / "data" / "masks" / f"{Path(name).stem}.png"
        mask.write_bytes(imageio.encode_mask(gradient()))
    return Dataset.at(tmp_path / "data")


def gradient() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return ((x + 3 * y) % 256).astype(np.uint8)


@pytest.fixture
def served(data: Dataset) -> Iterator[Served]:
    worst = Issue("M005", Severity.ERROR, "masks/cleo.png", "<img src=x> covers all", "mend it")
    with serving(Session(data, [worst]), GRABCUT) as served:
        yield served


@pytest.fixture
def page(context: BrowserContext, served: Served) -> Iterator[Page]:
    with opened(context, served) as page:
        yield page


class opened:  # noqa: N801 a context manager
    def __init__(self, context: BrowserContext, served: Served) -> None:
        self.page, self.served = context.new_page(), served
        self.watch = watched(self.page)

    def __enter__(self) -> Page:
        self.watch.__enter__()
        self.page.goto(self.served.url)
        ready(self.page)
        return self.page

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.page.close()
        if kind is None:
            self.watch.__exit__(None, None, None)


def ready(page: Page, name: str = "") -> None:
    expect(page.locator("#name")).to_have_text(name) if name else None
    expect(page.locator("#facts")).to_contain_text("covered")


def is_saved(page: Page) -> None:
    expect(page.locator("#saved")).to_have_attribute("data-state", "saved")


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    """From pixels of the image to pixels of the page, while the image fits the stage."""
    box = page.locator("#stage").bounding_box()
    assert box
    scale = 0.96 * min(box["width"], box["height"]) / SIDE
    return (
        box["x"] + box["width"] / 2 + (x - SIDE / 2) * scale,
        box["y"] + box["height"] / 2 + (y - SIDE / 2) * scale,
    )


def stroke(page: Page, *points: tuple[float, float]) -> None:
    first, *others = (place(page, x, y) for x, y in points)
    page.mouse.move(*first)
    page.mouse.down()
    for point in others:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    expect(page.locator("#undo")).to_be_enabled()
    is_saved(page)


def on_disk(data: Dataset, stem: str = "cleo") -> np.ndarray:
    return imageio.decode_mask((data.masks / f"{stem}.png").read_bytes())


def other_than(before: np.ndarray, page: Page, data: Dataset) -> np.ndarray:
    """The mask on the disk, once it is another."""
    for _ in range(600):
        if not np.array_equal(on_disk(data), before):
            return on_disk(data)
        page.wait_for_timeout(100)
    raise AssertionError("the mask on the disk did not change")


def near(y: float, x0: float, x1: float, radius: float) -> np.ndarray:
    """Pixels nearer than `radius` to a horizontal line."""
    canvas = np.full((SIDE, SIDE), 255, np.uint8)
    cv2.line(canvas, (int(x0), int(y)), (int(x1), int(y)), 0)
    return cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < radius


def test_a_stroke_is_on_the_disk_and_there_after_a_reload(page: Page, data: Dataset) -> None:
    ready(page, "cleo.png")  # the one with an error comes first
    stroke(page, (100, 150), (200, 150))
    painted = on_disk(data)
    assert (painted[near(150, 100, 200, 14)] == 255).all()
    elsewhere = ~near(150, 100, 200, 19)
    assert np.array_equal(painted[elsewhere], gradient()[elsewhere])
    (backup,) = (data.state / "trash").glob("*/masks/cleo.png")
    assert np.array_equal(imageio.decode_mask(backup.read_bytes()), gradient())
    covered = page.locator("#facts").inner_text()
    small = page.locator("#list [aria-current] img")
    expect(small).to_have_attribute("src", re.compile(r"thumbnail\?[0-9a-f]{12}$"))
    assert small.evaluate("(e) => e.decode().then(() => e.naturalWidth)") == 112
    page.reload()
    ready(page, "cleo.png")
    expect(page.locator("#facts")).to_have_text(covered)
    assert np.array_equal(on_disk(data), painted)


def test_undo_and_redo_bring_back_every_bit(page: Page, data: Dataset) -> None:
    stroke(page, (60, 60), (250, 200))
    once = on_disk(data)
    page.keyboard.press("e")
    stroke(page, (60, 200), (250, 60))
    twice = on_disk(data)
    assert (once != twice).any()
    for key, expected in (
        ("Control+z", once),
        ("Control+z", gradient()),
        ("Control+y", once),
        ("Control+Shift+z", twice),
    ):
        page.keyboard.press(key)
        is_saved(page)
        assert np.array_equal(on_disk(data), expected), key
    expect(page.locator("#redo")).to_be_disabled()


def test_brush_size_lines_and_erasing_with_the_other_button(page: Page, data: Dataset) -> None:
    for _ in range(10):
        page.keyboard.press("[")
    stroke(page, (50, 40))
    dot = np.count_nonzero(on_disk(data) != gradient())
    assert 0 < dot < 20
    page.keyboard.down("Shift")
    stroke(page, (250, 40))
    page.keyboard.up("Shift")
    assert (on_disk(data)[40, 52:248] == 255).all()
    for _ in range(10):
        page.keyboard.press("]")
    page.mouse.move(*place(page, 150, 240))
    page.mouse.down(button="right")
    page.mouse.up(button="right")
    is_saved(page)
    assert (on_disk(data)[232:248, 142:158] == 0).all()


def test_zoom_keeps_what_is_under_the_pointer(page: Page, data: Dataset) -> None:
    page.mouse.move(*place(page, 80, 240))
    for _ in range(4):
        page.mouse.wheel(0, -400)
    for _ in range(16):
        page.keyboard.press("[")
    page.mouse.down()
    page.mouse.up()
    is_saved(page)
    rows, columns = np.nonzero(on_disk(data) != gradient())
    assert (abs(rows - 240).max(), abs(columns - 80).max()) <= (2, 2)
    assert rows.size > 0
    page.keyboard.press("0")
    page.keyboard.down("Space")
    page.mouse.down()
    page.mouse.move(*place(page, 200, 200))
    page.mouse.up()
    page.keyboard.up("Space")
    assert np.count_nonzero(on_disk(data) != gradient()) == rows.size  # panning paints nothing


def test_click_to_segment_with_a_box_and_points(
    page: Page, data: Dataset, people: list[Portrait]
) -> None:
    page.keyboard.press("c")
    expect(page.locator("#model")).to_contain_text("GrabCut")
    truth = people[2].people[0]
    x0, y0, x1, y1 = truth.face.box
    page.mouse.move(*place(page, x0, y0))
    page.mouse.down()
    page.mouse.move(*place(page, x1, y1), steps=3)
    page.mouse.up()
    expect(page.locator("#undo")).to_be_enabled()
    is_saved(page)
    boxed = on_disk(data)
    assert set(np.unique(boxed)) == {0, 255}
    xs = np.nonzero(boxed)[1]
    assert (x0 - 20 < xs).all()
    assert (xs < x1 + 20).all()
    assert boxed[int((y0 + y1) / 2), int((x0 + x1) / 2)] == 255
    page.mouse.click(*place(page, (x0 + x1) / 2, (y0 + y1) / 2), button="right")
    answered = other_than(boxed, page, data)
    assert answered[int((y0 + y1) / 2), int((x0 + x1) / 2)] == 0
    page.keyboard.press("Control+z")
    is_saved(page)
    assert np.array_equal(on_disk(data), boxed)


def test_an_answer_can_be_added_and_taken_away(page: Page, data: Dataset) -> None:
    page.keyboard.press("c")
    page.locator("#combine").select_option("add")
    page.mouse.click(*place(page, 160, 160))
    expect(page.locator("#undo")).to_be_enabled()
    is_saved(page)
    changed = on_disk(data) != gradient()
    assert changed.any()
    assert (on_disk(data)[changed] == 255).all()
    page.keyboard.press("Control+z")
    page.locator("#combine").select_option("subtract")
    page.mouse.click(*place(page, 160, 160))
    expect(page.locator("#undo")).to_be_enabled()
    is_saved(page)
    changed = on_disk(data) != gradient()
    assert changed.any()
    assert (on_disk(data)[changed] == 0).all()


def test_sam2_answers_to_a_click(
    context: BrowserContext, data: Dataset, people: list[Portrait]
) -> None:
    spec = SegmenterSpec("sam2", str(SAM2), str(SAM2_CONFIG), device="cpu", dtype="float32")
    with serving(Session(data), spec) as served, opened(context, served) as page:
        ready(page, "ada.png")
        page.keyboard.press("c")
        expect(page.locator("#model")).to_contain_text("sam2")
        truth = people[0].people[0]
        x0, y0, x1, y1 = truth.face.box
        page.mouse.move(*place(page, x0, y0))
        page.mouse.down()
        page.mouse.move(*place(page, x1, y1), steps=3)
        page.mouse.up()
        expect(page.locator("#undo")).to_be_enabled()
        is_saved(page)
    found, face = on_disk(data, "ada") > 0, truth.face_mask
    assert np.count_nonzero(found & face) / np.count_nonzero(found | face) > 0.7


def test_decisions_by_keyboard(page: Page, data: Dataset) -> None:
    ready(page, "cleo.png")
    page.keyboard.press("r")
    ready(page, "ada.png")
    page.keyboard.press("a")
    ready(page, "bob <b>&.png")
    expect(page.locator("#counts")).to_have_text("1 accepted, 1 rejected, 1 to go")
    found = {name: decision.verdict for name, decision in decisions.read(data).items()}
    assert found == {"cleo.png": "rejected", "ada.png": "accepted"}
    page.keyboard.press("ArrowLeft")
    ready(page, "ada.png")
    expect(page.locator("#accept")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("u")
    expect(page.locator("#accept")).to_have_attribute("aria-pressed", "false")
    assert decisions.rejected(data) == {"cleo.png"}
    assert "ada.png" not in {n for n, d in decisions.read(data).items() if d.verdict}
    page.locator("#filter").select_option("rejected")
    expect(page.locator("#list button")).to_have_count(1)
    ready(page, "cleo.png")
    page.reload()
    ready(page, "cleo.png")
    expect(page.locator("#reject")).to_have_attribute("aria-pressed", "true")
    page.locator("#filter").select_option("issues")
    expect(page.locator("#list .what")).to_have_text(["cleo.png"])


def test_names_and_messages_with_markup_are_text(page: Page) -> None:
    expect(page.locator("#issues li")).to_have_text(["M005 <img src=x> covers all"])
    expect(page.locator("#list .what")).to_have_text(["cleo.png", "ada.png", "bob <b>&.png"])
    assert page.locator("main img, #list b, #issues img").count() == 0


def test_what_works_on_the_whole_mask(page: Page, data: Dataset) -> None:
    page.keyboard.press("i")
    expect(page.locator("#undo")).to_be_enabled()
    is_saved(page)
    assert np.array_equal(on_disk(data), 255 - gradient())
    page.get_by_role("button", name="All").click()
    expect(page.locator("#facts")).to_contain_text("100.0 %")
    page.locator("#amount").fill("20px")
    page.get_by_role("button", name="Feather").click()
    expect(page.locator("#facts")).not_to_contain_text("100.0 %")
    is_saved(page)
    assert on_disk(data)[160, 160] == 255
    page.get_by_role("button", name="Nothing").click()
    expect(page.locator("#facts")).to_contain_text(", 0.0 %")
    page.get_by_role("button", name="Restore").click()
    expect(page.locator("#facts")).to_contain_text(", 50.0 %")
    is_saved(page)
    assert np.array_equal(on_disk(data), gradient())


def test_a_mask_that_changed_meanwhile_is_said_and_left(page: Page, data: Dataset) -> None:
    other = imageio.encode_mask(np.full((SIDE, SIDE), 7, np.uint8))
    (data.masks / "cleo.png").write_bytes(other)
    page.mouse.click(*place(page, 100, 100))
    expect(page.locator("#message")).to_contain_text("changed by somebody else")
    expect(page.locator("#saved")).to_have_attribute("data-state", "failed")
    assert (data.masks / "cleo.png").read_bytes() == other


def test_help_and_how_the_mask_is_shown(page: Page) -> None:
    page.keyboard.press("m")
    expect(page.locator("#look")).to_have_value("tint")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_light_and_dark(page: Page) -> None:
    def ground() -> tuple[int, ...]:
        picture = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
        return tuple(int(v) for v in picture[-20, 20])

    page.emulate_media(color_scheme="light")
    light = ground()
    page.emulate_media(color_scheme="dark")
    assert min(light) > 200
    assert max(ground()) < 80


def test_a_box_around_the_face_of_a_photograph(context: BrowserContext, tmp_path: Path) -> None:
    """Also the picture in the documents: LORA_PREP_PICTURES=docs/images keeps it."""
    (tmp_path / "data" / "faces").mkdir(parents=True)
    file = next(photo.path for photo in photographs() if photo.name == "astronaut.png")
    for name in ("collins-01.png", "collins-02.png", "collins-03.png"):
        shutil.copy(file, tmp_path / "data" / "faces" / name)
    data = Dataset.at(tmp_path / "data")
    folder = Path(os.environ.get("LORA_PREP_PICTURES", tmp_path))
    with serving(Session(data), GRABCUT) as served, opened(context, served) as page:
        page.keyboard.press("r")
        ready(page, "collins-02.png")
        page.keyboard.press("c")
        corners = [place(page, x * SIDE / 512, y * SIDE / 512) for x, y in ((172, 62), (274, 206))]
        page.mouse.move(*corners[0])
        page.mouse.down()
        page.mouse.move(*corners[1], steps=3)
        page.mouse.up()
        expect(page.locator("#undo")).to_be_enabled()
        is_saved(page)
        page.locator("#list [aria-current] img").evaluate("(e) => e.decode()")
        page.screenshot(path=folder / "review.png")
    mask = on_disk(data, "collins-02") > 0
    assert mask[100:180, 200:250].mean() > 0.9
    assert mask[:, :150].sum() + mask[:, 300:].sum() + mask[260:].sum() == 0
    assert decisions.rejected(data) == {"collins-01.png"}
