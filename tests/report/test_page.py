"""The page: complete in itself, and nothing in it runs that is not its own."""

import base64
import hashlib
import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lora_prep.dataset import Dataset
from lora_prep.report import Kind, collect
from lora_prep.report.histogram import BARS, histogram
from lora_prep.report.page import readable, render, size_text, ticked
from lora_prep.types import Issue, Severity
from tests.report.made import add

WHEN = datetime(2026, 5, 4, 3, 2)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def page(root: Path, *issues: Issue) -> str:
    kinds = [Kind("I001", f"Title {EVIL}", Severity.ERROR, "why `this`", f"fix {EVIL}")]
    dataset = Dataset.at(root, recursive=True)
    return render(collect(dataset, issues=issues, kinds=kinds), WHEN).decode()


class Elements(HTMLParser):
    """The tags of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style"):
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    add(tmp_path, "<img src=x onerror=alert(3)>.png", caption=EVIL)
    add(tmp_path, "</script><b>.png", 1, caption="{{ 7 * 7 }} {% raw %}")
    return tmp_path


def test_names_captions_and_messages_are_text(evil):
    issue = Issue("I001", Severity.ERROR, f"faces/{EVIL}.png", EVIL, "fix")
    found = Elements(page(evil, issue))
    kinds = [tag for tag, _ in found.tags]
    assert "img" not in kinds
    assert "b" in kinds  # the parser does see markup
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    running = [a for a, _ in found.scripts if a.get("type") != "application/json"]
    assert len(running) == 2, "the style and the one script"
    data = json.loads(next(text for a, text in found.scripts if a.get("id") == "data"))
    assert [image["name"] for image in data["images"]] == [
        "</script><b>.png",
        "<img src=x onerror=alert(3)>.png",
    ]
    assert data["images"][1]["caption"] == EVIL
    assert data["images"][0]["caption"] == "{{ 7 * 7 }} {% raw %}"


def test_the_policy_allows_what_is_in_the_page_and_nothing_else(evil):
    text = page(evil)
    found = Elements(text)
    policy = next(
        a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any("style" in attributes for _, attributes in found.tags)


def test_nothing_leads_into_the_network(evil):
    places = [
        value or ""
        for _, attributes in Elements(page(evil)).tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset")
    ]
    assert places
    assert all(place.startswith(("#", "data:")) for place in places)


def test_equal_data_gives_equal_bytes(evil):
    assert page(evil) == page(evil)


def test_names_that_cannot_be_seen_are_written_out():
    assert readable("a\u202eb\x00c\udcffd") == "a\\u202eb\\x00c\\udcffd"
    assert readable("été 北京\nb") == "été 北京\nb"


def test_a_name_with_bytes_that_are_no_text(tmp_path):
    add(tmp_path, "bad\udcff.png")
    assert "bad\\\\udcff.png" in page(tmp_path)


def test_backticks_become_code_and_nothing_else_does():
    assert ticked("run `a <b>` & c") == "run <code>a &lt;b&gt;</code> &amp; c"
    assert ticked("one ` <i>") == "one ` &lt;i&gt;"


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 bytes"), (15_400, "15 kB"), (2_340_000, "2.3 MB")]
)
def test_sizes(count, text):
    assert size_text(count) == text


def test_histograms_count_every_value():
    made = histogram("T", "n", [0.0, 0.1, 0.1, 1.0], ".1f", mark=1.5, mark_label="m")
    assert sum(int(bar.label.rsplit(" ", 1)[1]) for bar in made.bars) == 4
    assert (made.low, made.high, made.median, made.mark) == ("0.0", "1.5", "0.1", 360.0)
    assert max(bar.height for bar in made.bars) == 96
    assert all(bar.x >= 0 and bar.x + bar.width <= 360 for bar in made.bars)


def test_histograms_of_one_value_and_of_none():
    (bar,) = histogram("T", "n", [5.0, 5.0], ".0f").bars
    assert bar.label.endswith(": 2")
    assert histogram("T", "n", [], ".0f") is None


def test_a_log_scale_spreads_what_is_small():
    made = histogram("T", "n", [1.0, 10.0, 100.0], ".0f", scale="log")
    middle = next(bar for bar in made.bars if bar.x > 0)
    assert middle.x == pytest.approx(360 / BARS * (BARS // 2), abs=1)
