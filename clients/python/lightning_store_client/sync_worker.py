"""WorkerSession for code that does not await."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from lightning_store.model import AttemptedRollout
from lightning_store_client.attempt_scope import attempt_scope
from lightning_store_client.blocking import run_blocking
from lightning_store_client.worker import Cancellation, CancelReason, WorkerSession


class SyncCancellation:
    """Whether one attempt was called off, and why. See :class:`Cancellation`."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._cancellation = cancellation

    @property
    def reason(self) -> CancelReason | None:
        """None: it was not called off."""
        return self._cancellation.reason

    def is_set(self) -> bool:
        """Whether it was called off."""
        return self._cancellation.is_set()

    def wait(self, timeout: float | None = None) -> CancelReason:
        """Return, with the reason, when it is called off. TimeoutError after ``timeout`` seconds."""
        return run_blocking(self._cancellation.wait(), timeout)


class SyncWorkerSession:
    """A runner that tells the store that it lives. Made by ``SyncLightningStoreClient.worker``; see
    :class:`WorkerSession`. ::

        with store.worker("runner-7") as worker:
            while (claimed := store.dequeue_rollout(worker.worker_id, max_wait=30)) is not None:
                with worker.hold(claimed) as cancelled:
                    for step in act(claimed.input):  # looks for itself whether it was called off
                        if cancelled.is_set():
                            break
                    else:
                        store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    """

    def __init__(self, session: WorkerSession) -> None:
        self._session = session

    @property
    def worker_id(self) -> str:
        return self._session.worker_id

    def __enter__(self) -> Self:
        run_blocking(self._session.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        run_blocking(self._session.__aexit__())

    def hold(self, claimed: AttemptedRollout, *, report_failure: bool = True) -> SyncHold:
        """``with`` it, work on ``claimed``, which was claimed or started with this worker's id.

        The block is not interrupted when the attempt is called off: look at ``cancelled.is_set()``. Otherwise as
        :meth:`WorkerSession.hold`.

        Args:
            claimed: The rollout with its attempt.
            report_failure: Whether an exception that leaves the block is reported as the attempt's failure.
        """
        return SyncHold(self._session, claimed, report_failure)


class SyncHold:
    """The block in which a worker holds an attempt. Made by ``SyncWorkerSession.hold``; gives the cancellation."""

    def __init__(self, session: WorkerSession, claimed: AttemptedRollout, report_failure: bool) -> None:
        self._session = session
        self._claimed = claimed
        self._report_failure = report_failure

    def __enter__(self) -> SyncCancellation:
        """InvalidArgumentError, InvalidTypeError or RuntimeError if the worker cannot hold it."""
        self._cancelled = run_blocking(self._take())
        self._scope = attempt_scope(self._claimed)
        self._scope.__enter__()
        return SyncCancellation(self._cancelled)

    async def _take(self) -> Cancellation:
        cancelled = Cancellation()
        self._session._take(self._claimed, cancelled)
        return cancelled

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store the spans of the block, and report its failure."""
        self._scope.__exit__(exc_type, exc, traceback)
        try:
            if exc is None or isinstance(exc, Exception):
                run_blocking(self._session._finish(self._claimed, exc, report_failure=self._report_failure))
        finally:
            self._session._release(self._cancelled)
