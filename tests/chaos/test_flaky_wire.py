"""The contract, over a wire on which calls are broken all the time: the same assertions as on a sound one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar
from zlib import crc32

import pytest

from lightning_store import InMemoryLightningStore, LightningStore
from lightning_store.testing import FakeClock, StoreContract
from lightning_store.testing.contract.attempts import RevivalContract, StatusContract
from lightning_store.testing.contract.base import ContractBase
from lightning_store.testing.contract.concurrency import AtomicityContract, ThreadsContract
from lightning_store.testing.contract.deletion import DeletionContract
from lightning_store.testing.contract.feed import FeedContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.contract.resources import ResourcesContract
from lightning_store.testing.contract.spans import AddingSpansContract, SpanNumbersContract
from lightning_store.testing.contract.waiting import WaitingContract
from lightning_store.testing.contract.waiting_for_any import WaitingForAnyContract
from lightning_store.testing.contract.workers import AssignmentContract, HeartbeatContract
from lightning_store.testing.faults import Fault, FaultSchedule, FaultStatistics
from tests.chaos.flaky import PATIENCE, BeatingClient, flaky_wire


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


class TestChangesWithEveryFifthReplyLost(
    EveryNth,
    QueueContract,
    StatusContract,
    RevivalContract,
    AddingSpansContract,
    SpanNumbersContract,
    ResourcesContract,
    AssignmentContract,
    HeartbeatContract,
    WaitingContract,
    WaitingForAnyContract,
    FeedContract,
    DeletionContract,
    AtomicityContract,
    ThreadsContract,
):
    """The parts of the contract in which a call that happens twice, or not at all, shows."""

    nth = 5


DEVIATIONS = {
    "test_f32_the_estimator_sees_the_span": "a batch of spans that arrives again is measured again",
    **dict.fromkeys(
        (
            "test_x_who_came_first_is_served_first",
            "test_x_as_many_wake_as_were_queued",
            "test_x_one_rollout_wakes_nobody_else",
        ),
        "who waits for work and loses the connection comes back to the end of the line",
    ),
    "test_x_who_stops_waiting_costs_no_claim": "between two attempts of a call nothing waits at the server",
}


@pytest.mark.chaos
class TestEverySecondReplyLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 2


@pytest.mark.chaos
class TestEveryThirdReplyLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 3


@pytest.mark.chaos
class TestEverySeventhReplyLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 7


@pytest.mark.chaos
class TestEveryThirdRequestLost(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 3
    faults = (Fault.CUT_REQUEST,)


@pytest.mark.chaos
class TestEveryThirdCallLostOneWayOrAnother(EveryNth, StoreContract):
    deviations = DEVIATIONS
    nth = 3
    faults = (Fault.CUT_REPLY, Fault.CUT_REQUEST, Fault.RESET)


@pytest.mark.chaos
class TestByChance1(ByChance, StoreContract):
    deviations = DEVIATIONS
    seed = 1


@pytest.mark.chaos
class TestByChance2(ByChance, StoreContract):
    deviations = DEVIATIONS
    seed = 2
