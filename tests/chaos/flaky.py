"""A store behind a wire that breaks, and the client that gets through all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from lightning_store import UNSET, LightningStore, StoreUnavailableError
from lightning_store.model import Unset, Worker
from lightning_store.testing.faults import FaultProxy, FaultSchedule
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer

PATIENCE: dict[str, Any] = {"retry_delays": (0.0,) * 2000, "health_retry_delays": ()}
"""Settings of a client that takes no time between attempts. A cut ends all calls of a connection: where dozens run in
parallel and each second reply is cut, one of them needs hundreds of attempts."""


class BeatingClient(LightningStoreClient):
    """A client that sends a lost heartbeat again, as a runner does with its next one. The client itself does not:
    a heartbeat that is late is worth nothing."""

    async def update_worker(self, worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset = UNSET) -> Worker:
        while True:
            try:
                return await super().update_worker(worker_id, heartbeat_stats)
            except StoreUnavailableError:
                continue


@asynccontextmanager
async def flaky_wire(store: LightningStore, schedule: FaultSchedule) -> AsyncIterator[FaultProxy]:
    """A proxy before a server of ``store``."""
    server = LightningStoreServer(store, port=0)
    async with server, FaultProxy(server.endpoint, schedule) as proxy:
        yield proxy
