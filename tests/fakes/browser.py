"""A real Chromium without a window, with an empty profile and no network but this machine's."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import BrowserContext, Page, sync_playwright

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser(width: int = 1280, height: int = 800) -> Iterator[BrowserContext]:
    """A browser with one empty page; what pages log as errors is an error here, see `watched`."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=found,  # None: the one that `playwright install chromium` fetched
            args=list(ARGUMENTS),
            viewport={"width": width, "height": height},
        )
        try:
            yield context
        finally:
            context.close()


@contextmanager
def watched(page: Page) -> Iterator[Page]:
    """The page; afterwards, that it raised nothing, and that nothing was refused by its CSP."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda said: (
            errors.append(said.text)
            if said.type == "error" and "status of 4" not in said.text
            else None
        ),
    )
    yield page
    assert errors == []
