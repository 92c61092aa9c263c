"""The server's command line, and it writes how many tasks it has: ``python -m tests.soak.served FILE serve …``."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

from lightning_store_server.cli import main

COUNT_SECONDS = 0.5

serve: Any = importlib.import_module("lightning_store_server.cli.serve")
run = serve.run
file = Path(sys.argv.pop(1))


async def counted(*settings: Any) -> Any:
    """As ``serve.run``."""
    counting = asyncio.create_task(count())
    try:
        return await run(*settings)
    finally:
        counting.cancel()


async def count() -> None:
    while True:
        file.write_text(str(len(asyncio.all_tasks())))  # noqa: ASYNC240 - a few bytes
        await asyncio.sleep(COUNT_SECONDS)


if __name__ == "__main__":
    serve.run = counted
    main()
