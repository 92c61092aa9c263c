"""``python -m examples.svamp_demo``."""

from __future__ import annotations

import sys

from examples.svamp_demo.demo import main

if __name__ == "__main__":
    sys.exit(main())
