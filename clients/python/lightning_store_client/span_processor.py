"""LightningStoreSpanProcessor: has an OpenTelemetry SDK store its spans with the attempt that they belong to."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import SpanProcessor

from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID
from lightning_store_client.attempt_scope import AttemptKey, current_attempt
from lightning_store_client.background import background_thread

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan
    from opentelemetry.trace import SpanContext

    from lightning_store_client.client import LightningStoreClient

logger = logging.getLogger("lightning_store_client")

OPEN_SPANS_MAX: Final = 100_000
"""Spans whose attempt is remembered from their start to their end."""


class LightningStoreSpanProcessor(SpanProcessor):
    """Stores every span that ends, with the attempt in which it started::

        provider = TracerProvider()
        provider.add_span_processor(LightningStoreSpanProcessor(client))

    A span belongs to the attempt of the innermost ``worker.hold`` or ``attempt_scope`` at its start, or else to that of
    its parent, also on threads that know neither. Both ids are set as the attributes ``agentlightning.rollout_id`` and
    ``agentlightning.attempt_id``. A span that has these attributes when it starts, or whose resource has them, keeps
    them. Spans without an attempt, and those that are not sampled, are left to other processors.

    Spans are sent in batches from the background thread. Before ``worker.hold`` ends, before the client sends an
    ``update_attempt`` and before it is closed, everything that has ended is stored.

    Args:
        client: The client that stores them. It may be used for other calls too.
    """

    def __init__(self, client: LightningStoreClient) -> None:
        self._buffer = client.span_buffer
        self._attempts: dict[tuple[int, int], AttemptKey] = {}
        """Of spans that have not ended. Attributes may be dropped, if a span has more of them than the SDK keeps."""

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        attempt = _labelled(span.attributes) or current_attempt() or self._attempt_of_parent(span)
        if attempt is None:
            return
        while len(self._attempts) >= OPEN_SPANS_MAX:
            self._attempts.pop(next(iter(self._attempts)), None)
        self._attempts[_ids(span.get_span_context())] = attempt
        span.set_attributes({ROLLOUT_ID: attempt.rollout_id, ATTEMPT_ID: attempt.attempt_id})

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None:
            return
        attempt = self._attempts.pop(_ids(context), None) or _labelled(span.attributes)
        attempt = attempt or _labelled(span.resource.attributes)
        if attempt is not None and context.trace_flags.sampled:
            self._buffer.add(attempt, span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return whether all spans that have ended were stored, or refused, in time. Not on an event loop whose client
        has to go on meanwhile: there, await ``client.flush_spans()``."""
        if background_thread().is_current:
            raise RuntimeError("force_flush blocks the background thread of the client; await client.flush_spans()")
        flushed = background_thread().submit(self._buffer.flush())
        try:
            flushed.result(timeout_millis / 1000)
        except concurrent.futures.TimeoutError:
            flushed.cancel()
            return False
        except Exception as error:
            logger.warning("spans are not stored: %s: %s", type(error).__name__, error)
            return False
        return True

    def shutdown(self) -> None:
        """Store what has ended."""
        if not self._buffer.is_empty:
            self.force_flush()

    def _attempt_of_parent(self, span: SdkSpan) -> AttemptKey | None:
        return None if span.parent is None else self._attempts.get(_ids(span.parent))


def _ids(context: SpanContext) -> tuple[int, int]:
    return context.trace_id, context.span_id


def _labelled(attributes: Mapping[str, Any] | None) -> AttemptKey | None:
    """The attempt that attributes name."""
    rollout_id, attempt_id = (attributes or {}).get(ROLLOUT_ID), (attributes or {}).get(ATTEMPT_ID)
    if isinstance(rollout_id, str) and isinstance(attempt_id, str):
        return AttemptKey(rollout_id, attempt_id)
    return None
