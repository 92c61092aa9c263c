"""Run pyright with the settings of pyproject.toml.

pyright runs on node. Where node is missing and cannot be fetched either, this says so and passes, so that a laptop
without a network can still be used; in CI (``CI`` set in the environment) it fails.
"""

from __future__ import annotations

import os
import subprocess
import sys

PYRIGHT = [sys.executable, "-m", "pyright"]


def main() -> int:
    probe = subprocess.run([*PYRIGHT, "--version"], capture_output=True, text=True, check=False)
    if probe.returncode == 0:
        return subprocess.run([*PYRIGHT, *sys.argv[1:]], check=False).returncode
    lines = (probe.stderr or probe.stdout).strip().splitlines() or ["no reason given"]
    print(f"pyright: SKIPPED, it cannot start ({lines[-1]}); install node, or allow it to be fetched.", file=sys.stderr)
    return 1 if os.environ.get("CI") else 0


if __name__ == "__main__":
    sys.exit(main())
