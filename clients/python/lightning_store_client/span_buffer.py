"""Finished spans of an OpenTelemetry SDK on their way to the store."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from lightning_store.backends.records import SpanRecord
from lightning_store.clock import Clock
from lightning_store.errors import CallCancelledError, InvalidArgumentError, StoreError
from lightning_store.model import Span
from lightning_store.outcomes import SpanOutcome, add_legal
from lightning_store_client.attempt_scope import AttemptKey
from lightning_store_client.background import background_thread
from lightning_store_client.span_sending import SpanSender

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger("lightning_store_client")

DELAY_SECONDS: Final = 0.5
"""How long the first span waits for others to go with it, unless somebody flushes."""
AGAIN_SECONDS: Final = 5.0
"""The pause after a batch that could not be sent."""
BATCH_SPANS: Final = 512
"""Spans of one batch; so many do not wait."""
SPANS_MAX: Final = 65_536
"""Spans that are held while the store cannot be reached. Those beyond are lost, and logged."""


class SpanBuffer:
    """Spans of one client, sent in the order in which they ended, from the background thread.

    Spans that the store does not take are logged and dropped. While it cannot be reached they are kept, and sent with
    the next ones or the next ``flush``. A forked child begins with an empty buffer: the parent sends what it holds.
    """

    def __init__(self, sender: SpanSender, clock: Clock) -> None:
        self._sender = sender
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._pending: deque[tuple[AttemptKey, ReadableSpan]] = deque()
        self._sending = 0
        self._turn = asyncio.Lock()
        """Held by the one who sends, so that batches go one after the other."""
        self._wakes = False
        """Whether the buffer is going to be sent by itself."""
        self._lost = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without what this process has still to send."""
        return SpanBuffer, (self._sender, self._clock)

    def add(self, attempt: AttemptKey, span: ReadableSpan) -> None:
        """Take a finished span. From any thread; nothing is waited for."""
        if self._pid != os.getpid():
            self._reset()
        if len(self._pending) >= SPANS_MAX:
            self._lost += 1
            if self._lost == 1:
                logger.error("%d spans wait for the store, which cannot be reached; further ones are lost", SPANS_MAX)
            return
        self._pending.append((attempt, span))
        if not self._wakes:
            self._wakes = True
            background_thread().submit(self._send_later())
        elif len(self._pending) % BATCH_SPANS == 0:
            background_thread().submit(self._sent())

    @property
    def is_empty(self) -> bool:
        """Whether everything is stored, dropped or lost."""
        return self._pid != os.getpid() or not (self._pending or self._sending)

    async def flush(self) -> None:
        """Return when everything that was added before is stored, or was refused and logged.

        Raises:
            StoreError: The store cannot be reached. The spans are kept.
        """
        if not self.is_empty:
            await background_thread().run(self._send_all())

    # --- In the background thread ------------------------------------------------------------------------------------

    async def _send_later(self) -> None:
        await self._clock.sleep(DELAY_SECONDS)
        self._wakes = False
        while not await self._sent() and not self._wakes:
            await self._clock.sleep(AGAIN_SECONDS)

    async def _sent(self) -> bool:
        """Whether all was sent that was there."""
        try:
            await self._send_all()
        except Exception as error:
            message = "%d spans are not stored yet, and are sent again: %s: %s"
            logger.warning(message, len(self._pending), type(error).__name__, error)
            return False
        return True

    async def _send_all(self) -> None:
        async with self._turn:
            left = len(self._pending)
            while left:
                batch = [self._pending.popleft() for _ in range(min(left, BATCH_SPANS))]
                left -= len(batch)
                self._sending = len(batch)
                try:
                    _log_refused(await self._stored(batch))
                except BaseException:
                    self._pending.extendleft(reversed(batch))
                    raise
                finally:
                    self._sending = 0
            if self._lost:
                logger.error("%d spans were lost while the store could not be reached", self._lost)
                self._lost = 0

    async def _stored(self, batch: list[tuple[AttemptKey, ReadableSpan]]) -> list[SpanOutcome]:
        """One outcome for each span. An error that may pass is raised."""
        try:
            return await add_legal([self._encoded(*one) for one in batch], self._sender.add_many)
        except StoreError as error:
            if error.may_pass:
                raise
            return [error] * len(batch)
        except RuntimeError as error:
            return [CallCancelledError(str(error))] * len(batch)  # the client was closed

    def _encoded(self, attempt: AttemptKey, span: ReadableSpan) -> SpanRecord | StoreError:
        try:
            record = self._sender.encoded(Span.from_opentelemetry(span, attempt.rollout_id, attempt.attempt_id, 0))
        except Exception as error:
            return InvalidArgumentError(f"span {span.name!r} cannot be converted: {error}")
        return record if isinstance(record, StoreError) else record._replace(sequence_id=None)


def _log_refused(outcomes: list[SpanOutcome]) -> None:
    refused = [outcome for outcome in outcomes if isinstance(outcome, StoreError)]
    if refused:
        logger.warning("%d of %d spans were refused and are not stored: %s", len(refused), len(outcomes), refused[0])
