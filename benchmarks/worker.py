"""A client process: one JSON request a line on stdin, one JSON reply a line on stdout.

It holds one side's store at a time. What it can be asked is in :data:`TASKS`; a task that fails is a reply, not an end.
The process ends with its stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TextIO, get_args

from benchmarks.cells import calls, growth, memory, runners, waiting
from benchmarks.rounds import describe
from benchmarks.session import Session
from benchmarks.stores import Family

Task = Callable[..., Awaitable[Any]]
"""Takes the session, and keyword arguments that JSON can hold; returns what JSON can hold."""

TASKS: Final[dict[str, Task]] = {
    "open": Session.open,
    "close": Session.close,
    "warm": calls.warm,
    "round": calls.round_of,
    "wake": waiting.wake,
    "idle": waiting.idle,
    "make_attempts": memory.make_attempts,
    "add_spans": memory.add_spans,
    "fill": growth.fill,
    "work": growth.work,
    "probe": growth.probe,
    "ready": runners.ready,
    "run_runners": runners.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="benchmarks.worker", description=__doc__)
    parser.add_argument("--family", choices=get_args(Family), required=True, help="whose client to drive")
    options = parser.parse_args(arguments)
    asyncio.run(_serve(Session(options.family), _private_stdout()))


async def _serve(session: Session, replies: TextIO) -> None:
    # In a thread: connections that the server closes between two requests must not go unnoticed.
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await _answer(session, json.loads(line))), file=replies, flush=True)
    await session.close()


def _private_stdout() -> TextIO:
    """Stdout for replies alone: what libraries print goes to stderr from here on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


async def _answer(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """What to reply to ``{"task": …, "seconds_max": …, "arguments": {…}}``: ``{"result": …}`` or ``{"failure": …}``."""
    try:
        async with asyncio.timeout(request["seconds_max"]):
            return {"result": await TASKS[request["task"]](session, **request["arguments"])}
    except TimeoutError:
        return {"failure": f"no end after {request['seconds_max']:g} s"}
    except Exception as error:
        traceback.print_exc()
        return {"failure": describe(error)}


if __name__ == "__main__":
    main()
