"""``python -m examples.agent_lightning``."""

from __future__ import annotations

import sys

from examples.agent_lightning.demo import main

if __name__ == "__main__":
    sys.exit(main())
