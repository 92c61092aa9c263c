"""What is kept for each event loop."""

from __future__ import annotations

import asyncio
from typing import Any


def forget_closed(by_loop: dict[asyncio.AbstractEventLoop, Any]) -> None:
    """Drop what belongs to loops that were closed, of which nobody is told. Other threads may use it meanwhile."""
    for loop in list(by_loop):
        if loop.is_closed():
            by_loop.pop(loop, None)
