"""What the browser tests of the page share: a server, a browser, a window."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from page_visit import CHROMIUM, FLAGS, PATIENCE, WIDE, Visit


@pytest.fixture(scope="module")
def page_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the shipped model, in a process of its own, which logs no fault."""
    command = [sys.executable, "-m", "ddit", "page", "--port", "0"]
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait(timeout=30)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Any, page_address: str) -> Iterator[Visit]:
    """A window as wide as a screen, or as the test's parameter says."""
    visit = Visit(browser, page_address, getattr(request, "param", WIDE))
    yield visit
    visit.end()
