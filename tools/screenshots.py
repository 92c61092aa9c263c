"""Take the pictures of the operator's page that README and docs show: ``python -m tools.screenshots FOLDER``.

The overview is that of the GRPO demo at work, the rollout one of the SVAMP demo.
"""

from __future__ import annotations

import re
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, sync_playwright

from tools.browser import FLAGS, chromium
from tools.web_demo import Served, serving, svamp, training, wait_for

WIDTH: Final = 1280
COLOURS: Final = 256
"""A page has few colours, and a picture with so many is a third as large."""


def main(folder: str) -> int:
    path = chromium()
    if path is None:
        print("there is no chromium: run tools/browser.py", file=sys.stderr)
        return 1
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        work = Path(scratch)
        with serving(f"sqlite:{work / 'grpo.db'}", work / "server.log") as server, training(server, work):
            wait_for(server.url, r"policy version (1[5-9]|[2-9]\d)\b")
            wait_for(server.url, r"Of the last [\d,]+ completions\.")
            _take(browser, f"{server.url}/", into / "overview.png", 1000)
            _take(browser, f"{server.url}/", into / "overview-dark.png", 1000, dark=True)
            _take(browser, f"{server.url}/", into / "overview-phone.png", 844, width=390)
            _take(browser, f"{server.url}/ui/rollouts", into / "rollouts.png", 760)
            _take(
                browser,
                f"{server.url}/ui/groups/{_first(server, 'groups', '?status=succeeded')}",
                into / "group.png",
                760,
            )
            _take(browser, f"{server.url}/ui/workers", into / "workers.png", 620)
        with serving(f"sqlite:{work / 'svamp.db'}", work / "server-2.log") as server:
            svamp(server, work)
            rollout = _first(server, "rollouts", "?mode=train")
            _take(browser, f"{server.url}/ui/rollouts/{rollout}", into / "rollout.png", 1000)
            _take(browser, f"{server.url}/ui/resources", into / "resources.png", 620)
            _take(browser, f"{server.url}/ui/settings", into / "settings.png", 620)
        browser.close()
    return 0


def _first(server: Served, kind: str, query: str) -> str:
    """The first rollout or group of a list."""
    with urllib.request.urlopen(f"{server.url}/ui/rollouts{query}") as reply:
        found = re.search(rf'/ui/{kind}/([^"?]+)"', reply.read().decode())
    assert found is not None
    return found[1]


def _take(browser: Browser, url: str, file: Path, height: int, *, dark: bool = False, width: int = WIDTH) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        device_scale_factor=1,
    )
    page = context.new_page()
    page.goto(url)
    page.screenshot(path=file)
    context.close()
    _shrink(file)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB", flush=True)


def _shrink(file: Path) -> None:
    from PIL import Image  # comes with matplotlib

    with Image.open(file) as image:
        small = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
