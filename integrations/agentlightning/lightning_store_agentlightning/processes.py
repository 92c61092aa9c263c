"""Runner processes: forked, watched, and stopped in four steps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Coroutine, Sequence
from multiprocessing import connection
from multiprocessing.context import ForkContext
from multiprocessing.process import BaseProcess
from typing import Any

from agentlightning.execution.events import ExecutionEvent, MultiprocessingEvent

from lightning_store.clock import Clock, SystemClock

logger = logging.getLogger("lightning_store_agentlightning")

Work = Callable[[int, ExecutionEvent], Coroutine[Any, Any, None]]
"""What one runner does, given its number and the event that asks it to stop."""


class RunnerProcesses:
    """The runners of one run. Forked, since Agent Lightning's bundles are closures and cannot be pickled.

    :param graceful_timeout: seconds that they get to stop by themselves once they are asked to
    :param terminate_timeout: seconds that each further step gets: SIGINT, SIGTERM, SIGKILL
    :param allowed_exit_codes: of processes that ended well; minus the signal's number for those that a signal ended
    """

    def __init__(
        self, *, graceful_timeout: float, terminate_timeout: float, allowed_exit_codes: Collection[int]
    ) -> None:
        self._context = _fork_context()
        self.stop_event: ExecutionEvent = MultiprocessingEvent(ctx=self._context)
        self._graceful_timeout = graceful_timeout
        self._terminate_timeout = terminate_timeout
        self._allowed_exit_codes = allowed_exit_codes
        self._clock: Clock = SystemClock()
        self._asked_at: float | None = None
        self._processes: list[BaseProcess] = []

    def start(self, count: int, work: Work) -> None:
        """Fork ``count`` processes that each run ``work`` on an event loop of their own."""
        for number in range(count):
            arguments = (work, number, self.stop_event)
            process = self._context.Process(target=_run_child, args=arguments, name=f"runner-{number}")
            process.start()
            self._processes.append(process)

    # --- How they are ------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have ended, or for ``timeout`` seconds. Whether all have."""
        until = None if timeout is None else self._clock.monotonic() + timeout
        while alive := self._alive():
            left = None if until is None else until - self._clock.monotonic()
            if left is not None and left <= 0:
                return False
            connection.wait([process.sentinel for process in alive], left)
        return True

    def failures(self) -> list[str]:
        """Those that have ended with an exit code that is not allowed."""
        allowed = {None, *self._allowed_exit_codes}
        return [f"{one.name} (exit code {one.exitcode})" for one in self._processes if one.exitcode not in allowed]

    def check(self) -> None:
        """RuntimeError if any of them has failed."""
        if failures := self.failures():
            raise RuntimeError(f"runner processes failed: {', '.join(failures)}; stderr tells why")

    async def until_failure(self) -> None:
        """Return as soon as one has failed; never, if none does."""
        await self._until(lambda: bool(self.failures()) or not self._alive())
        if not self.failures():
            if self._processes:
                logger.warning("all runners have ended; the algorithm goes on without them")
            await asyncio.Event().wait()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as ``condition`` holds; it is looked at whenever a process has ended."""
        loop = asyncio.get_running_loop()
        some_ended = asyncio.Event()

        def note(process: BaseProcess) -> None:
            loop.remove_reader(process.sentinel)  # it stays readable for ever
            process.join()  # the sentinel is a moment earlier than the exit code
            some_ended.set()

        watched = self._alive()
        for process in watched:
            loop.add_reader(process.sentinel, note, process)
        try:
            while not condition():
                some_ended.clear()
                await some_ended.wait()
        finally:
            for process in watched:
                loop.remove_reader(process.sentinel)

    def _alive(self) -> list[BaseProcess]:
        return [process for process in self._processes if process.is_alive()]

    # --- Stopping them -----------------------------------------------------------------------------------------------

    async def ask_to_stop(self) -> None:
        """The first step alone: set the stop event, and wait until all have ended or the graceful timeout is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._ask()):
                await self._until(lambda: not self._alive())

    def shut_down(self) -> None:
        """All four steps, or as many as it takes."""
        if self.wait(self._ask()):
            return
        for step in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            alive = self._alive()
            logger.warning("%s still alive; sending %s", _names(alive), step.name)
            for process in alive:
                _send(process, step)
            if self.wait(self._terminate_timeout):
                return
        logger.error("%s survived SIGKILL", _names(self._alive()))

    def _ask(self) -> float:
        """Set the stop event. The seconds that are left of the graceful timeout, which begins with the first time."""
        self.stop_event.set()
        now = self._clock.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        return max(0.0, self._asked_at + self._graceful_timeout - now)


def _fork_context() -> ForkContext:
    try:
        return multiprocessing.get_context("fork")
    except ValueError as error:
        raise RuntimeError("runner processes need fork, which this platform does not have") from error


def _names(processes: Sequence[BaseProcess]) -> str:
    return ", ".join(process.name for process in processes)


def _send(process: BaseProcess, number: signal.Signals) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, number)


# --- In the child ----------------------------------------------------------------------------------------------------


def _run_child(work: Work, number: int, stop_event: ExecutionEvent) -> None:
    try:
        asyncio.run(_run_watching_parent(work(number, stop_event), stop_event))
    except KeyboardInterrupt:
        logger.info("runner-%d: interrupted", number)
    except BaseException:
        stop_event.set()
        raise


async def _run_watching_parent(work: Coroutine[Any, Any, None], stop_event: ExecutionEvent) -> None:
    """Run ``work``. If the parent dies without having stopped its runners, they are asked to stop all the same."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(parent.sentinel)
        stop_event.set()

    loop.add_reader(parent.sentinel, stop)
    await work
