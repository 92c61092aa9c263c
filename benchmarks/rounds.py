"""One round: so many concurrent callers, for so long, with what it cost on both sides.

Items (arguments, and what has to be stored beforehand) are made before the clock starts, and the garbage collector is
told to leave everything that is there at that moment alone; so a round holds calls and nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from benchmarks.records import Spread, percentile

Call = Callable[[Any, int], Awaitable[None]]
"""Makes one call with an item, as the caller of that number; raises what the call raises, and on a wrong answer."""

ERROR_CHARACTERS_MAX = 200


class WrongAnswerError(Exception):
    """A call returned, but not what it should have."""


class Round(BaseModel):
    """What one round measured."""

    model_config = ConfigDict(frozen=True)

    calls: int
    """Calls that succeeded."""
    seconds: float
    """From the first call's start to the last one's end."""
    p50_ms: float
    p99_ms: float
    client_cpu_us: float
    """CPU time of the client process for each call that succeeded."""
    server_cpu_us: float | None
    """The same of the server process; None if there is none."""
    errors: dict[str, int]

    @property
    def calls_per_second(self) -> float:
        """Throughput of the calls that succeeded."""
        return self.calls / self.seconds if self.seconds else 0.0


def metrics_of(rounds: list[Round]) -> dict[str, Spread]:
    """Throughput, latency and cost over rounds of which each had calls that succeeded."""
    names = ["calls_per_second", "p50_ms", "p99_ms", "client_cpu_us", "server_cpu_us"]
    columns = {name: [getattr(one, name) for one in rounds] for name in names}
    return {name: Spread.of(values) for name, values in columns.items() if None not in values}


def errors_of(rounds: list[Round]) -> dict[str, int]:
    """All errors of these rounds."""
    total: Counter[str] = Counter()
    for one in rounds:
        total.update(one.errors)
    return dict(total)


class CpuMeter:
    """CPU seconds of this process and of the server, since it was made."""

    def __init__(self, server: psutil.Process | None) -> None:
        self._server = server
        self._server_start = _cpu_seconds(server)
        self._client_start = time.process_time()

    @property
    def client_seconds(self) -> float:
        """Of this process, all its threads."""
        return time.process_time() - self._client_start

    @property
    def server_seconds(self) -> float | None:
        """Of the server, all its threads, to the clock tick (10 ms on Linux)."""
        return None if self._server is None else _cpu_seconds(self._server) - self._server_start


def _cpu_seconds(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


async def run_round(
    call: Call, items: Iterator[Any], *, callers: int, seconds: float, server: psutil.Process | None = None
) -> Round:
    """Make calls with ``items`` until they run out or ``seconds`` have passed; then wait for those under way."""
    durations: list[float] = []
    errors: Counter[str] = Counter()

    async def caller(number: int) -> None:
        for item in items:
            begun = time.perf_counter()
            try:
                await call(item, number)
            except Exception as error:
                errors[describe(error)] += 1
            else:
                durations.append(time.perf_counter() - begun)
            if time.perf_counter() >= until:
                return

    with quiet_collector():
        meter = CpuMeter(server)
        start = time.perf_counter()
        until = start + seconds
        await asyncio.gather(*(caller(number) for number in range(callers)))
        elapsed = time.perf_counter() - start
        client_seconds, server_seconds = meter.client_seconds, meter.server_seconds
    durations.sort()
    calls = len(durations)
    return Round(
        calls=calls,
        seconds=elapsed,
        p50_ms=percentile(durations, 0.50) * 1e3,
        p99_ms=percentile(durations, 0.99) * 1e3,
        client_cpu_us=client_seconds / max(calls, 1) * 1e6,
        server_cpu_us=None if server_seconds is None else server_seconds / max(calls, 1) * 1e6,
        errors=dict(errors),
    )


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Collect now, and leave what is there out of the collections inside; those go on for what is made inside."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def describe(error: BaseException) -> str:
    """An error as a key to count by: its class and the beginning of its message."""
    return f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]
