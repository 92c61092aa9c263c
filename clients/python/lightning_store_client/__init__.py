"""The client of a LightningStore server: a ``LightningStore`` like any other, that speaks gRPC.

async with LightningStoreClient("localhost:4747") as store:
    rollout = await store.dequeue_rollout(worker_id="runner-1")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_store_client import fork_support as fork_support  # before anything else imports gRPC
from lightning_store_client.attempt_scope import attempt_scope
from lightning_store_client.client import LightningStoreClient
from lightning_store_client.worker import Cancellation, WorkerSession

if TYPE_CHECKING:
    from lightning_store_client.span_processor import LightningStoreSpanProcessor

__all__ = ["Cancellation", "LightningStoreClient", "LightningStoreSpanProcessor", "WorkerSession", "attempt_scope"]


if not TYPE_CHECKING:  # or any name would do for type checkers

    def __getattr__(name: str) -> Any:
        """OpenTelemetry's SDK is imported when somebody asks for the processor: it takes its time."""
        if name != "LightningStoreSpanProcessor":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from lightning_store_client.span_processor import LightningStoreSpanProcessor

        return LightningStoreSpanProcessor
