"""The contract of LightningStore as tests, in parts by area; ``StoreContract`` is all of them."""

from __future__ import annotations

from lightning_store.testing.contract.admission import AdmissionContract
from lightning_store.testing.contract.attempts import RevivalContract, StatusContract
from lightning_store.testing.contract.concurrency import AtomicityContract, ThreadsContract
from lightning_store.testing.contract.consuming import ConsumingContract
from lightning_store.testing.contract.deletion import DeletedContract, DeletionContract
from lightning_store.testing.contract.extensions import (
    CancellingContract,
    HandMadeSpansContract,
    IdsContract,
    LeaseContract,
    WaitingClaimsContract,
)
from lightning_store.testing.contract.feed import FeedContract
from lightning_store.testing.contract.groups import GroupsContract
from lightning_store.testing.contract.memory import MemoryContract, StatisticsContract
from lightning_store.testing.contract.queries import OtherQueriesContract, RolloutQueriesContract, SpanQueriesContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.contract.request_ids import RequestIdsContract
from lightning_store.testing.contract.resources import ResourcesContract
from lightning_store.testing.contract.retiring import ResourcesDeletionContract, WorkersEndContract
from lightning_store.testing.contract.rollouts import MakingContract, UpdatingContract
from lightning_store.testing.contract.spans import (
    AddingSpansContract,
    OtelSpansContract,
    ReadingSpansContract,
    SpanNumbersContract,
)
from lightning_store.testing.contract.training import (
    EndReasonsContract,
    FencedAttemptsContract,
    FiltersContract,
    FinalOutcomesContract,
    IdempotencyKeysContract,
    PrioritiesContract,
    ReservedMetadataContract,
    RetryDelaysContract,
    UncountedAttemptsContract,
)
from lightning_store.testing.contract.versions import PolicyVersionsContract, StalenessContract
from lightning_store.testing.contract.waiting import WaitingContract
from lightning_store.testing.contract.waiting_for_any import WaitingForAnyContract
from lightning_store.testing.contract.watchdog import DeadlinesContract, PausesContract, WatchdogContract
from lightning_store.testing.contract.workers import AssignmentContract, HeartbeatContract


class StoreContract(
    MakingContract,
    UpdatingContract,
    QueueContract,
    StatusContract,
    RevivalContract,
    AddingSpansContract,
    SpanNumbersContract,
    OtelSpansContract,
    ReadingSpansContract,
    RolloutQueriesContract,
    SpanQueriesContract,
    OtherQueriesContract,
    ResourcesContract,
    AssignmentContract,
    HeartbeatContract,
    DeadlinesContract,
    PausesContract,
    WatchdogContract,
    WaitingContract,
    MemoryContract,
    StatisticsContract,
    AtomicityContract,
    ThreadsContract,
    WaitingClaimsContract,
    CancellingContract,
    LeaseContract,
    IdsContract,
    HandMadeSpansContract,
    WaitingForAnyContract,
    FeedContract,
    DeletionContract,
    DeletedContract,
    WorkersEndContract,
    ResourcesDeletionContract,
    FinalOutcomesContract,
    FencedAttemptsContract,
    IdempotencyKeysContract,
    FiltersContract,
    EndReasonsContract,
    RetryDelaysContract,
    PrioritiesContract,
    ReservedMetadataContract,
    UncountedAttemptsContract,
    PolicyVersionsContract,
    StalenessContract,
    GroupsContract,
    ConsumingContract,
    AdmissionContract,
    RequestIdsContract,
):
    """Every fact of the contract, to be run on any store::

        class TestMyStore(StoreContract):
            async def open_store(self, clock, **options):
                store = MyStore(clock=clock, **options)
                yield store
                await store.close()

    The numbers in the names of the tests (``test_f13_…``) are those of the facts in ``docs/contract.md``; what goes
    beyond them has an x. A store that departs from one on purpose says so, with the reason, in ``deviations``; those
    tests are skipped and the reason shows in the report.
    """


__all__ = ["StoreContract"]
