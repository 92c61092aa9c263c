"""Calls that block, made in the background thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from lightning_store_client.background import background_thread

T = TypeVar("T")


def run_blocking(work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Run ``work`` in the background thread of this process, and return its result. Ctrl-C cancels it.

    Args:
        work: The call.
        timeout: How long it may take, in seconds; None without limit.

    Raises:
        TimeoutError: It took longer, and was cancelled.
        RuntimeError: This is the background thread, which would wait for itself.
    """
    thread = background_thread()
    if thread.is_current:
        work.close()
        raise RuntimeError("this is the thread in which synchronous clients make their calls; use LightningStoreClient")
    future = thread.submit(work if timeout is None else _limited(work, timeout))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _limited(work: Coroutine[Any, Any, T], timeout: float) -> T:
    async with asyncio.timeout(timeout):
        return await work
