"""The client of a LightningStore server: a ``LightningStore`` like any other, that speaks gRPC.

async with LightningStoreClient("localhost:4747") as store:
    rollout = await store.dequeue_rollout(worker_id="runner-1")
"""

from __future__ import annotations

from lightning_store_client import fork_support as fork_support  # before anything else imports gRPC
from lightning_store_client.client import LightningStoreClient
from lightning_store_client.worker import Cancellation, WorkerSession

__all__ = ["Cancellation", "LightningStoreClient", "WorkerSession"]
