"""A real Chromium, and the page in it."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PAGE_PATIENCE_S = 20
AXE = Path(__file__).parents[2] / "build/axe-core/package/axe.min.js"
SIZES = {"phone": (390, 844), "desktop": (1440, 900)}
NETWORK = re.compile(r"Failed to load resource")
"""Chromium's own line for a response that is an error."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One process for the tests of a file."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright; run make test-page")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium; install it (apt install chromium) or name it in CHROMIUM")
    playwright.expect.set_options(timeout=1000 * PAGE_PATIENCE_S)
    with playwright.sync_playwright() as running:
        # As root there is no sandbox, and shared memory may be small in a container.
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, url: str, *, size: str = "desktop", dark: bool = False, errors: str | None = None, **options: Any
) -> Iterator[Any]:
    """The page at a URL, in a context of its own. No error may reach the console but network's, where ``errors``
    says so: a pattern."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
    )
    context.set_default_timeout(1000 * PAGE_PATIENCE_S)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        page.goto(url)
        yield page
        unexpected = [each for each in said if errors is None or not re.search(errors, each)]
        assert unexpected == []
    finally:
        context.close()


def asked(page: Any, question: str) -> None:
    """Asks, and waits for the whole answer."""
    from playwright.sync_api import expect

    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#status")).to_have_text("Done.")
