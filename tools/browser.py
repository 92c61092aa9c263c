"""Find Debian's chromium, which drives the operator's page in tests and takes its pictures; install it where possible.

Playwright's own browsers come from a host of their own; a distribution's package is checked with everything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
INSTALL: Final = ("apt-get", "install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core")
FLAGS: Final = ("--no-sandbox",) if os.geteuid() == 0 else ()
"""Chromium refuses a sandbox to root, as containers and CI have it."""


def chromium() -> str | None:
    """The path of the browser: that of the variable CHROMIUM, or the first on the PATH. None if there is none."""
    return os.environ.get("CHROMIUM") or next((found for found in map(shutil.which, NAMES) if found), None)


def main() -> int:
    if chromium() is not None:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        told = "there is no chromium; install it (Debian: apt install chromium), or name one in the variable CHROMIUM"
        print(told, file=sys.stderr)
        return 1
    print("Installing chromium with apt-get", flush=True)
    subprocess.run(["apt-get", "update", "--quiet"], check=True)
    return subprocess.run([*INSTALL, "--quiet"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
