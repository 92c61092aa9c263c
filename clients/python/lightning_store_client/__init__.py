"""The client of a LightningStore server: a ``LightningStore`` like any other, that speaks gRPC.

async with LightningStoreClient("localhost:4747") as store:
    rollout = await store.dequeue_rollout(worker_id="runner-1")
"""

from __future__ import annotations

import os

# Agent frameworks fork their runners. gRPC survives a fork of a process that uses its synchronous API if it is told so
# before it is first imported; without this, most children of a parent with an open channel hang.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")
# And it notes at every fork, on stderr, that another thread is at work; what goes wrong comes as an error all the same.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from lightning_store_client.client import LightningStoreClient
from lightning_store_client.worker import Cancellation, WorkerSession

__all__ = ["Cancellation", "LightningStoreClient", "WorkerSession"]
