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
    from lightning_store_client.sync_client import SyncLightningStoreClient

__all__ = [
    "Cancellation",
    "LightningStoreClient",
    "LightningStoreSpanProcessor",
    "SyncLightningStoreClient",
    "WorkerSession",
    "attempt_scope",
]


if not TYPE_CHECKING:  # or any name would do for type checkers

    def __getattr__(name: str) -> Any:
        """Imported when somebody asks for it: OpenTelemetry's SDK takes its time, and most programs need one client."""
        match name:
            case "LightningStoreSpanProcessor":
                from lightning_store_client.span_processor import LightningStoreSpanProcessor as found
            case "SyncLightningStoreClient":
                from lightning_store_client.sync_client import SyncLightningStoreClient as found
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found
