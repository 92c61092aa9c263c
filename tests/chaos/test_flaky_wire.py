"""The contract, over a wire on which calls are broken all the time: the same assertions as on a sound one.

Its whole, and in more ways, is in ``test_flaky_wire_whole.py``.
"""

from __future__ import annotations

from lightning_store.testing.contract.attempts import RevivalContract, StatusContract
from lightning_store.testing.contract.concurrency import AtomicityContract, ThreadsContract
from lightning_store.testing.contract.deletion import DeletionContract
from lightning_store.testing.contract.feed import FeedContract
from lightning_store.testing.contract.queue import QueueContract
from lightning_store.testing.contract.resources import ResourcesContract
from lightning_store.testing.contract.spans import AddingSpansContract, SpanNumbersContract
from lightning_store.testing.contract.waiting import WaitingContract
from lightning_store.testing.contract.waiting_for_any import WaitingForAnyContract
from lightning_store.testing.contract.workers import AssignmentContract, HeartbeatContract
from tests.chaos.flaky import EveryNth


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
