"""WorkerSession: heartbeats of a runner from the background thread, and word of attempts that are called off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from lightning_store import arguments
from lightning_store.errors import InvalidArgumentError, InvalidTypeError, StoreError
from lightning_store.model import UNSET, AttemptedRollout
from lightning_store.v1 import rollout_pb2 as rollout
from lightning_store.v1 import worker_pb2 as worker
from lightning_store.wire import requests
from lightning_store_client.attempt_scope import attempt_scope
from lightning_store_client.background import background_thread
from lightning_store_client.calls import Calls
from lightning_store_client.channel import no_fork
from lightning_store_client.retry import jittered
from lightning_store_client.rounds import Rounds

if TYPE_CHECKING:
    from lightning_store_client.client import LightningStoreClient

logger = logging.getLogger("lightning_store_client")

Stats = Callable[[], Mapping[str, Any]]
"""More heartbeat stats, as JSON can hold them. Called in the thread that sends the heartbeats of all workers of the
process, so it has to be quick."""

CancelReason = Literal["cancelled", "superseded", "lost"]
"""Why an attempt was called off: its rollout was cancelled; a newer attempt of it has begun; or the store gave it up
(timeout, unresponsive), gave it to another worker, or knows it no longer."""

HEARTBEAT_TIMEOUT_SECONDS: Final = 5.0
"""What one heartbeat may take, unless the interval is shorter. There are no retries: the next one is the retry."""
RELEASE_TIMEOUT_SECONDS: Final = 1.0
"""How long a worker that ends waits for the store to note it."""
EARLY_SHARE: Final = 0.05
"""The share of the interval by which a heartbeat may come earlier, to go with others of the process."""
LISTEN_AFTER_SECONDS: Final = 0.5
"""How long an attempt is held before the store is asked to tell of its end. Shorter ones cost no call."""
LISTEN_PAUSE_SECONDS: Final = 1.0
"""The pause after a call that was to tell of it has failed."""
LISTEN_SECONDS_MAX: Final = 20.0
"""What the store is asked to wait at a time."""
EXCEPTION_TEXT_MAX: Final = 4000
"""Characters of an exception's text that are reported."""

_ANSWERS: Final[Mapping[int, CancelReason | None]] = {
    worker.ASSIGNMENT_STATE_ACTIVE: None,
    worker.ASSIGNMENT_STATE_CANCELLED: "cancelled",
    worker.ASSIGNMENT_STATE_SUPERSEDED: "superseded",
}
_REPORTED: Final = (rollout.ATTEMPT_STATUS_FAILED, rollout.ATTEMPT_STATUS_SUCCEEDED)
_GIVEN_UP: Final = (rollout.ATTEMPT_STATUS_TIMEOUT, rollout.ATTEMPT_STATUS_UNRESPONSIVE)
_UNREPORTED: Final = ("preparing", "running", "unresponsive")


class Cancellation:
    """Whether one attempt was called off, and why. Once set it stays set; the next attempt has one of its own."""

    def __init__(self, interrupt: Callable[[], object] | None = None) -> None:
        """``interrupt`` is called on the running event loop when this is set."""
        self._interrupt = interrupt
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._lock = threading.Lock()
        self._open = True
        self._reason: CancelReason | None = None

    @property
    def reason(self) -> CancelReason | None:
        """None: it was not called off."""
        return self._reason

    def is_set(self) -> bool:
        """Whether it was called off. True at once in any thread, also while the event loop is blocked."""
        return self._reason is not None

    async def wait(self) -> CancelReason:
        """Return, with the reason, when it is called off. Only on the event loop that holds the attempt."""
        await self._event.wait()
        assert self._reason is not None
        return self._reason

    def _set(self, reason: CancelReason) -> bool:
        """From any thread. False, and nothing changes, if it is set already or the attempt is held no longer."""
        with self._lock:
            if not self._open or self._reason is not None:
                return False
            self._reason = reason
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            self._loop.call_soon_threadsafe(self._wake)
        return True

    def _wake(self) -> None:
        self._event.set()
        if self._open and self._interrupt is not None:
            self._interrupt()

    def _close(self) -> None:
        """The attempt is held no longer: what is known now stays."""
        with self._lock:
            self._open = False


@dataclass(slots=True)
class _Held:
    rollout_id: str
    attempt_id: str
    cancelled: Cancellation
    listening: Future[None] | None = None


class _Failures:
    """Logs when something begins to fail and when it works again, not each failure."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0

    def note(self, error: Exception | None) -> None:
        """The outcome of one more try; None: it worked."""
        if error is None:
            if self._count:
                logger.info("%s: works again, after %d that failed", self._what, self._count)
            self._count = 0
            return
        self._count += 1
        if self._count == 1:
            logger.warning("%s: failed, and is tried again each time: %s: %s", self._what, type(error).__name__, error)


class WorkerSession:
    """A runner that tells the store that it lives, and hears when its work is called off. Made by ``client.worker``.

    From entry to exit it sends a heartbeat every ``interval`` seconds from the background thread, which all workers of
    the process share: an event loop that is blocked does not stop them. Entering returns after the first one, which may
    fail like any other: what fails is logged, and the next is the retry. Each has stats of this process and machine
    (:class:`ProcessStats`). Leaving tells the store that the worker ends, so that it does not stay busy. ::

        async with client.worker("runner-7") as worker:
            while (claimed := await client.dequeue_rollout(worker.worker_id, max_wait=30)) is not None:
                async with worker.hold(claimed) as cancelled:  # ends here and now if the attempt is called off
                    await act(claimed.input)  # if it raises, the attempt is reported as failed
                    await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
                if cancelled.is_set():
                    print(claimed.rollout_id, cancelled.reason)

    A worker holds one attempt at a time; a process that works on several needs several workers, each with an id of its
    own. Threads do not survive a fork: a child has no heartbeats until it enters a worker of its own, and holding with
    one that it inherited is a RuntimeError. When the client is closed, the heartbeats end. A program that ends without
    having left this is not kept alive.
    """

    def __init__(
        self,
        client: LightningStoreClient,
        calls: Calls,
        beats: Rounds,
        listening: Rounds,
        worker_id: str,
        interval: float,
        stats: Stats | None,
    ) -> None:
        """InvalidArgumentError or InvalidTypeError, which name the argument, if one is not legal."""
        arguments.check_heartbeat(worker_id, UNSET)
        _check_interval(interval)
        if stats is not None and not callable(stats):
            raise InvalidTypeError(f"stats is {stats!r}; give a function that returns a mapping", field="stats")
        self.worker_id = worker_id
        self._client = client
        self._calls = calls
        self._beats = beats
        self._listening = listening
        self._clock = calls.clock
        self._interval = arguments.wait_seconds("interval", interval)
        self._more_stats = stats
        self._pid: int | None = None
        """The process in which it is entered."""
        self._beating: asyncio.Task[None] | None = None
        self._held: _Held | None = None
        self._cancelled: Cancellation | None = None
        self._beats_failed = _Failures(f"heartbeat of worker {worker_id!r}")
        self._stats_failed = _Failures(f"stats for the heartbeat of worker {worker_id!r}")

    # --- What the runner does ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> WorkerSession:
        if self._beats_here():
            raise RuntimeError(f"worker {self.worker_id!r} is entered already")
        self._held, self._cancelled = None, Cancellation()
        self._pid = os.getpid()
        try:
            await background_thread().run(self._begin(_stats_of_process()))
        except BaseException:
            self._pid = None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send no more heartbeats, give up the one that is under way, and tell the store that the worker ends."""
        if self._beats_here():
            self._pid = None
            await background_thread().run(self._end())

    def _beats_here(self) -> bool:
        """Whether heartbeats are sent from this process."""
        return self._pid == os.getpid()

    @property
    def cancelled(self) -> Cancellation:
        """That of the attempt that is held, or else was held last; one that is never set before the first."""
        if self._cancelled is None:
            raise RuntimeError(f"worker {self.worker_id!r} is not entered; use `async with`")
        return self._cancelled

    def hold(self, claimed: AttemptedRollout, *, interrupt: bool = True, report_failure: bool = True) -> Hold:
        """``async with`` it, work on ``claimed``, which was claimed or started with this worker's id.

        Spans that start inside are stamped with the attempt (see ``LightningStoreSpanProcessor``), and are stored
        before the block ends.

        Args:
            claimed: The rollout with its attempt.
            interrupt: Whether the block's task is cancelled when the attempt is called off. The block then ends, as
                with a timeout, but without an error: so report the outcome inside. False leaves it running, for work
                that cannot be cancelled but looks at ``cancelled.is_set()``, in a thread for instance.
            report_failure: Whether an exception that leaves the block is reported: the attempt becomes failed, with
                ``exception.type`` and ``exception.message`` in its metadata, unless its outcome was reported before.
                The exception is raised all the same.
        """
        return Hold(self, claimed, interrupt, report_failure)

    def _take(self, claimed: AttemptedRollout, cancelled: Cancellation) -> None:
        self._check_claim(claimed)
        self._cancelled = cancelled
        held = self._held = _Held(claimed.rollout_id, claimed.attempt.attempt_id, cancelled)
        held.listening = background_thread().submit(self._listen(held))

    def _release(self, cancelled: Cancellation) -> None:
        cancelled._close()
        held = self._held
        if held is not None and held.cancelled is cancelled:
            self._held = None
            if held.listening is not None:
                held.listening.cancel()

    async def _finish(self, claimed: AttemptedRollout, error: Exception | None, *, report_failure: bool) -> None:
        """Store the spans of a block that has ended, and report its ``error``.

        Raises:
            StoreError: The spans are not stored. Not where there is an ``error``, which matters more.
        """
        try:
            await self._client.flush_spans()
            if error is not None and report_failure and not self.cancelled.is_set():
                await self._report_failure(claimed, error)
        except (StoreError, RuntimeError) as failure:
            if error is None:
                raise
            message = "worker %r: the failure of attempt %s is not reported: %s"
            logger.warning(message, self.worker_id, claimed.attempt.attempt_id, failure)

    async def _report_failure(self, claimed: AttemptedRollout, error: Exception) -> None:
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        attempts = {one.attempt_id: one for one in await self._client.query_attempts(rollout_id)}
        attempt = attempts.get(attempt_id)
        if attempt is None or attempt.status not in _UNREPORTED:
            return
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        metadata = {**(attempt.metadata or {}), "exception.type": name, "exception.message": _text_of(error)}
        await self._client.update_attempt(rollout_id, attempt_id, status="failed", metadata=metadata)

    def _check_claim(self, claimed: AttemptedRollout) -> None:
        if not isinstance(claimed, AttemptedRollout):
            raise InvalidTypeError(f"claimed is {claimed!r}; give the rollout that was claimed", field="claimed")
        holder = claimed.attempt.worker_id
        if holder != self.worker_id:
            message = f"claimed is held by worker {holder!r}; claim it with worker_id={self.worker_id!r}"
            raise InvalidArgumentError(message, field="claimed")
        if not self._beats_here():
            raise RuntimeError(f"worker {self.worker_id!r} sends no heartbeats here; use `async with` in this process")
        if self._held is not None:
            message = f"holds attempt {self._held.attempt_id} already; for more at once, give each a worker of its own"
            raise RuntimeError(f"worker {self.worker_id!r} {message}")

    # --- In the background thread ------------------------------------------------------------------------------------

    async def _begin(self, own_stats: Stats) -> None:
        await self._beat(own_stats)
        self._beating = asyncio.create_task(self._go_on(own_stats))

    async def _end(self) -> None:
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.wait([beating])
        try:
            request = worker.ReleaseWorkerRequest(worker_id=self.worker_id)
            await self._calls.once("ReleaseWorker", request, RELEASE_TIMEOUT_SECONDS)
        except Exception as error:  # its timeout remains
            logger.debug("worker %r is not released: %s", self.worker_id, error)

    async def _go_on(self, own_stats: Stats) -> None:
        elapsed = 0.0
        try:
            while True:
                left = max(0.0, self._interval - elapsed)
                await self._beats.sleep(left - self._interval * EARLY_SHARE, left)
                begun = self._clock.monotonic()
                await self._beat(own_stats)
                elapsed = self._clock.monotonic() - begun
        except RuntimeError as error:
            logger.debug("heartbeats of worker %r end: %s", self.worker_id, error)

    async def _beat(self, own_stats: Stats) -> None:
        """Send one heartbeat and heed the answer. RuntimeError once the client is closed."""
        held = self._held
        try:
            reply = await self._call("UpdateWorker", self._heartbeat(own_stats))
            if held is not None and not held.cancelled.is_set():
                self._heed(held, await self._why_called_off(held, reply))
        except Exception as error:
            self._calls.check_open()  # RuntimeError if that is why it failed
            self._beats_failed.note(error)
        else:
            self._beats_failed.note(None)

    async def _call(self, rpc: str, request: Any, wait_seconds: float = 0.0) -> Any:
        seconds = min(self._interval, HEARTBEAT_TIMEOUT_SECONDS) + wait_seconds
        return await self._calls.once(rpc, request, seconds)

    def _heartbeat(self, own_stats: Stats) -> worker.UpdateWorkerRequest:
        """With stats, or without if there is something wrong with them: the worker lives all the same."""
        try:
            stats = dict(own_stats())
            if self._more_stats is not None:
                stats.update(self._more_stats())
            request = requests.update_worker_to_proto(self.worker_id, stats)
        except Exception as error:
            self._stats_failed.note(error)
            return requests.update_worker_to_proto(self.worker_id, UNSET)
        self._stats_failed.note(None)
        return request

    async def _listen(self, held: _Held) -> None:
        """Wait for the end of the rollout, and heed it: so that nobody works on what was cancelled until the next
        heartbeat. What else may have happened, heartbeats tell."""
        await self._clock.sleep(LISTEN_AFTER_SECONDS)
        request = requests.wait_to_proto([held.rollout_id], LISTEN_SECONDS_MAX)
        while True:
            try:
                reply = await self._call("WaitForRollouts", request, LISTEN_SECONDS_MAX)
                if reply.complete:
                    self._heed(held, await self._judge(held, reply.rollouts[0] if reply.rollouts else None))
                    return
                await self._listening.sleep(0.0, LISTEN_AFTER_SECONDS)
            except Exception as error:
                if self._calls.is_closed:
                    return
                logger.debug("worker %r: listening fails, and goes on: %s", self.worker_id, error)
                await self._clock.sleep(jittered(LISTEN_PAUSE_SECONDS))

    def _heed(self, held: _Held, reason: CancelReason | None) -> None:
        if reason is not None and held.cancelled._set(reason):
            message = "worker %r: attempt %s of rollout %s is called off: %s"
            logger.info(message, self.worker_id, held.attempt_id, held.rollout_id, reason)

    async def _why_called_off(self, held: _Held, reply: worker.UpdateWorkerResponse) -> CancelReason | None:
        """What the reply to a heartbeat means for the attempt; None: go on."""
        of = reply.worker
        is_about_held = (of.current_rollout_id, of.current_attempt_id) == (held.rollout_id, held.attempt_id)
        if is_about_held and reply.assignment in _ANSWERS:
            return _ANSWERS[reply.assignment]
        # The worker's record does not speak of the attempt once the outcome is reported or the attempt given up, nor if
        # another has claimed under the same id.
        found = await self._call("GetRollout", rollout.GetRolloutRequest(rollout_id=held.rollout_id))
        return await self._judge(held, found.rollout if found.HasField("rollout") else None)

    async def _judge(self, held: _Held, found: rollout.Rollout | None) -> CancelReason | None:
        """What a rollout, None if it is gone, means for the attempt that is held of it."""
        if found is None:
            return "lost"
        latest = found.latest_attempt
        if latest.attempt_id != held.attempt_id:
            return None if await self._was_reported(held) else "superseded"
        if latest.status in _REPORTED:
            return None
        if found.status == rollout.ROLLOUT_STATUS_CANCELLED:
            return "cancelled"
        return "lost" if latest.status in _GIVEN_UP or latest.worker_id != self.worker_id else None

    async def _was_reported(self, held: _Held) -> bool:
        """Whether an attempt that has a successor has an outcome, so that nothing is left to call off."""
        reply = await self._call("ListAttempts", rollout.ListAttemptsRequest(rollout_id=held.rollout_id))
        return any(one.attempt_id == held.attempt_id and one.status in _REPORTED for one in reply.attempts)


class Hold:
    """The block in which a worker holds an attempt. Made by ``WorkerSession.hold``; gives the Cancellation."""

    def __init__(
        self, session: WorkerSession, claimed: AttemptedRollout, interrupt: bool, report_failure: bool
    ) -> None:
        self._session = session
        self._claimed = claimed
        self._interrupts = interrupt
        self._report_failure = report_failure

    async def __aenter__(self) -> Cancellation:
        """InvalidArgumentError, InvalidTypeError or RuntimeError if the worker cannot hold it."""
        self._timeout = await asyncio.timeout(None).__aenter__()
        self._cancelled = Cancellation(self._interrupt if self._interrupts else None)
        self._session._take(self._claimed, self._cancelled)
        self._scope = attempt_scope(self._claimed)
        self._scope.__enter__()
        return self._cancelled

    def _interrupt(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Store the spans of the block and report its failure, unless it was cancelled.

        Returns:
            True, and so no error, if the block was cancelled because the attempt was called off.

        Raises:
            StoreError: The block ended well, and its spans are not stored.
        """
        self._scope.__exit__(exc_type, exc, traceback)
        leaving = exc
        if exc is None or isinstance(exc, Exception):
            try:
                await self._session._finish(self._claimed, exc, report_failure=self._report_failure)
            except BaseException as failure:
                leaving = failure
        self._session._release(self._cancelled)
        try:
            await self._timeout.__aexit__(None if leaving is None else type(leaving), leaving, traceback)
        except TimeoutError:
            return True
        if leaving is not None and leaving is not exc:
            raise leaving
        return False


def _text_of(error: Exception) -> str:
    try:
        return str(error)[:EXCEPTION_TEXT_MAX]
    except Exception:
        return f"<{type(error).__name__} without a text>"


def _stats_of_process() -> Stats:
    """Imported only now: psutil takes its time, and most clients send no heartbeats. And not while the process forks,
    since the child would find the import half done."""
    with no_fork():
        from lightning_store_client.process_stats import stats_of_process
    return stats_of_process(os.getpid()).gather


def _check_interval(interval: object) -> None:
    if not isinstance(interval, int | float):
        raise InvalidTypeError(f"interval is {interval!r}; give seconds", field="interval")
    if not 0 < interval < math.inf:
        raise InvalidArgumentError(f"interval is {interval}; give more than 0 seconds", field="interval")
