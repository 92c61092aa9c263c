"""A store behind a wire that breaks, the client that gets through all the same, and the contract between the two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from zlib import crc32

import pytest

from lightning_store import UNSET, InMemoryLightningStore, LightningStore, StoreUnavailableError
from lightning_store.model import Unset, Worker
from lightning_store.testing import FakeClock
from lightning_store.testing.contract.base import ContractBase
from lightning_store.testing.faults import Fault, FaultProxy, FaultSchedule, FaultStatistics
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer

PATIENCE: dict[str, Any] = {"retry_delays": (0.0,) * 2000, "health_retry_delays": ()}
"""Settings of a client that takes no time between attempts. A cut ends all calls of a connection: where dozens run in
parallel and each second reply is cut, one of them needs hundreds of attempts."""


class BeatingClient(LightningStoreClient):
    """A client that sends a lost heartbeat again, as a runner does with its next one, and the word of its end. The
    client itself does not: a heartbeat that is late is worth nothing."""

    async def update_worker(self, worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset = UNSET) -> Worker:
        while True:
            try:
                return await super().update_worker(worker_id, heartbeat_stats)
            except StoreUnavailableError:
                continue

    async def release_worker(self, worker_id: str) -> Worker | None:
        while True:
            try:
                return await super().release_worker(worker_id)
            except StoreUnavailableError:
                continue


@asynccontextmanager
async def flaky_wire(store: LightningStore, schedule: FaultSchedule) -> AsyncIterator[FaultProxy]:
    """A proxy before a server of ``store``."""
    server = LightningStoreServer(store, port=0)
    async with server, FaultProxy(server.endpoint, schedule) as proxy:
        yield proxy


class FlakyWire(ContractBase):
    """Breaks calls as ``schedule`` says."""

    seen: ClassVar[list[FaultStatistics]]

    def schedule(self, name: str) -> FaultSchedule:
        """For the test called ``name``: it decides which calls are hit, so that each test can be run alone."""
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.seen = []

    @pytest.fixture(autouse=True)
    def _note_name(self, request: pytest.FixtureRequest) -> None:
        self.name = request.node.name

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _calls_were_cut(cls) -> Iterator[None]:
        yield
        calls, cut = sum(one.calls for one in cls.seen), sum(one.cut for one in cls.seen)
        assert calls < 100 or cut > calls / 100, f"of {calls} calls only {cut} were cut"

    async def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        store = InMemoryLightningStore(clock=clock, **options)
        async with flaky_wire(store, self.schedule(self.name)) as proxy:
            self.seen.append(proxy.statistics)
            async with BeatingClient(proxy.endpoint, clock=clock, **PATIENCE) as client:
                yield client


class EveryNth(FlakyWire):
    """Every ``nth`` call meets one of ``faults`` in turn."""

    nth: ClassVar[int]
    faults: ClassVar[tuple[Fault, ...]] = (Fault.CUT_REPLY,)

    def schedule(self, name: str) -> FaultSchedule:
        return FaultSchedule.every(self.nth, *self.faults, offset=crc32(name.encode()) % (self.nth * len(self.faults)))


class ByChance(FlakyWire):
    """Each call meets a fault with the probabilities in ``shares``."""

    seed: ClassVar[int]
    shares: ClassVar[dict[Fault, float]] = {
        Fault.CUT_REPLY: 0.1,
        Fault.CUT_REQUEST: 0.1,
        Fault.RESET: 0.05,
        Fault.DELAY: 0.02,
    }

    def schedule(self, name: str) -> FaultSchedule:
        return FaultSchedule.random(f"{self.seed}/{name}", self.shares)
