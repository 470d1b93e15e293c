"""A window of Chromium on the page, for its tests: opens tabs, presses buttons, collects faults, checks access.

With DDIT_SCREENSHOTS=DIR the tabs are also photographed at both widths, as the documentation shows them.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NARROW, WIDE = 390, 1440
PATIENCE = 60_000
"""Milliseconds that a busy machine may take."""

needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]
at_both_widths = pytest.mark.parametrize("visit", [NARROW, WIDE], indirect=True)

AXE = {"rules": {"target-size": {"enabled": True}}, "resultTypes": ["violations"]}

SMALL_TARGETS = """() => [...document.querySelectorAll("a, button, input, textarea, select, summary, [tabindex]")]
  .filter(element => element.checkVisibility({visibilityProperty: true}) && !element.closest("[aria-hidden=true]"))
  .map(element => [element, (element.closest("label") ?? element).getBoundingClientRect()])
  .filter(([_, box]) => box.width < 24 || box.height < 24)
  .map(([element, box]) => `${element.outerHTML.slice(0, 80)}: ${box.width} x ${box.height}`)"""

SMALL_TEXTS = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    const size = parseFloat(getComputedStyle(parent).fontSize);
    if (text && size < 14 && !parent.closest("script, style") && parent.checkVisibility())
      found.push(`${text.slice(0, 40)}: ${size}`);
  }
  return found;
}"""


class Visit:
    """A browser's window on the page, which collects its faults."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page, self.width, self.address = self.context.new_page(), width, address
        self.page.set_default_timeout(PATIENCE)
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", lambda response: response.status >= 400 and self.faults.append(response.url))
        self.page.goto(address)
        self.panel().get_by_label("Prompt", exact=True).wait_for()
        self.page.locator("[role=tab][tabindex='-1']").first.wait_for()  # the page's own script has run

    def _hear(self, message: Any) -> None:
        if message.type == "error":  # warnings are Gradio's own: a stream that it cannot close
            self.faults.append(message.text)

    def tab(self, name: str) -> Any:
        """Opens a tab; gives its panel."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        return self.panel()

    def panel(self) -> Any:
        return self.page.locator("[role=tabpanel]:visible")

    def press(self, name: str) -> None:
        self.panel().get_by_role("button", name=name, exact=True).click()

    def answer(self) -> str:
        """The finished text of the tab."""
        return self.panel().locator(".answer").inner_text()

    def photograph(self, name: str) -> None:
        """For the documentation, if that is asked for: the whole page, which must fit the screen and be accessible."""
        self.fits()
        self.is_accessible()
        folder = os.environ.get("DDIT_SCREENSHOTS")
        if folder:
            self.page.mouse.move(0, 0)
            path = Path(folder) / f"page_{name}_{self.width}.png"
            self.page.screenshot(path=path, full_page=True)
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)

    def fits(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth") == self.width

    def findings(self) -> list[str]:
        """What hinders access: serious findings of axe, small targets and texts, any but one primary button."""
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(self.page, options=AXE).response["violations"]
        primary = self.panel().locator("button.primary").count()
        return [
            *(
                f"{found['id']}: {node['html']}"
                for found in violations
                if found["impact"] in ("serious", "critical")
                for node in found["nodes"]
            ),
            *self.page.evaluate(SMALL_TARGETS),
            *self.page.evaluate(SMALL_TEXTS),
            *([f"{primary} primary buttons"] if primary != 1 else []),
        ]

    def is_accessible(self) -> None:
        found = self.findings()
        assert not found, found

    def end(self) -> None:
        outside = [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))]
        self.context.close()
        assert self.requests
        assert outside == []
        assert self.faults == []
