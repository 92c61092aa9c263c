"""The contract of backends: on the memory backend, and on those that behave as databases do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from lightning_store.backends.base import Backend
from lightning_store.backends.memory import MemoryBackend
from lightning_store.testing import BackendContract, FakeClock
from lightning_store.testing.backends import ConflictingBackend, ForgetfulBackend, RollingBackBackend, SuspendingBackend


class TestMemory(BackendContract):
    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        yield MemoryBackend(**options)


class TestSuspending(BackendContract):
    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        yield SuspendingBackend(MemoryBackend(**options))


class TestRollingBack(BackendContract):
    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        yield RollingBackBackend(MemoryBackend(**options))


MEETS_CONFLICTS = "meets conflicts at random, also in a transaction that the test makes by hand"


class TestConflicting(BackendContract):
    deviations: ClassVar = {
        "test_x_a_commit_of_nothing": MEETS_CONFLICTS,
        "test_x_a_rollback_after_the_commit_does_nothing": MEETS_CONFLICTS,
        "test_x_cancel_a_transaction_at_each_await": MEETS_CONFLICTS,
        "test_x_load_adds_to_the_object_that_was_handed_out": MEETS_CONFLICTS,
        "test_x_load_again_adds_to_what_was_loaded": MEETS_CONFLICTS,
        "test_x_load_more_claims": MEETS_CONFLICTS,
        "test_x_load_what_the_error_names": MEETS_CONFLICTS,
    }

    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        yield ConflictingBackend(MemoryBackend(**options))


LOSES_ANSWERS = "loses the answers of commits in turn, also of one that the test makes by hand"


class TestForgetful(BackendContract):
    deviations: ClassVar = {
        "test_x_a_commit_of_nothing": LOSES_ANSWERS,
        "test_x_a_rollback_after_the_commit_does_nothing": LOSES_ANSWERS,
        "test_x_an_id_that_is_taken_is_known_or_a_conflict": LOSES_ANSWERS,
        "test_x_cancel_a_transaction_at_each_await": LOSES_ANSWERS,
        "test_x_group_a_worker_does_one_thing_after_another": "a heartbeat runs again with the rest",
    }

    async def open_backend(self, clock: FakeClock, **options: Any) -> AsyncIterator[Backend]:
        yield ForgetfulBackend(MemoryBackend(**options))
