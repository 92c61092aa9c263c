"""What the parts of the contract suite share: fixtures that open a store, and short ways to bring one into a state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_asyncio

from lightning_store.model import (
    LLM,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    Resource,
    Rollout,
    RolloutConfig,
    Span,
    Worker,
)
from lightning_store.store import LightningStore
from lightning_store.testing.clock import SAFETY_SECONDS, FakeClock

T = TypeVar("T")

_POLL_SECONDS = 0.001


@pytest.mark.asyncio(loop_scope="function")
class SuiteBase:
    """What the suites of stores and of backends have in common: deviations, and a clock."""

    deviations: ClassVar[Mapping[str, str]] = {}
    """Tests that are not passed on purpose: name of the test -> why. They are skipped with that reason."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = [name for name in cls.deviations if not hasattr(cls, name)]
        if unknown:
            raise TypeError(f"{cls.__name__}.deviations names tests that do not exist: {', '.join(unknown)}")

    @pytest.fixture(autouse=True)
    def _skip_deviations(self, request: pytest.FixtureRequest) -> None:
        reason = self.deviations.get(request.function.__name__)
        if reason is not None:
            pytest.skip(reason)

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()


class ContractBase(SuiteBase):
    """Opens the store under test. :class:`lightning_store.testing.StoreContract` says how it is used."""

    def open_store(self, clock: FakeClock, **options: Any) -> AsyncIterator[LightningStore]:
        """Yield a new, empty store that reads the time from ``clock``; after the ``yield``, close it.

        An async generator. ``options`` are arguments of ``InMemoryLightningStore``: ``strict``,
        ``worker_timeout_seconds``; and, in the tests of fact 32, ``eviction_memory_threshold``,
        ``safe_memory_threshold``, ``span_size_estimator`` and ``memory_capacity_bytes``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open_store")

    def opened(self, clock: FakeClock, **options: Any) -> AbstractAsyncContextManager[LightningStore]:
        """``open_store`` as a context manager."""
        return asynccontextmanager(self.open_store)(clock, **options)

    @pytest_asyncio.fixture(loop_scope="function")
    async def store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        async with self.opened(clock) as store:
            yield store

    @pytest_asyncio.fixture(loop_scope="function")
    async def strict_store(self, clock: FakeClock) -> AsyncIterator[LightningStore]:
        async with self.opened(clock, strict=True) as store:
            yield store


# --- Making things ---------------------------------------------------------------------------------------------------


def retrying(max_attempts: int = 2, **fields: Any) -> RolloutConfig:
    """A config that retries whatever goes wrong."""
    return RolloutConfig(max_attempts=max_attempts, retry_condition=["failed", "timeout", "unresponsive"], **fields)


def make_span(rollout: AttemptedRollout, number: int = 1, **fields: Any) -> Span:
    """A span of ``rollout.attempt`` with ``number`` as its sequence number and in its span id."""
    given: dict[str, Any] = {
        "rollout_id": rollout.rollout_id,
        "attempt_id": rollout.attempt.attempt_id,
        "sequence_id": number,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": f"{number:016x}",
        "name": "step",
    }
    return Span.model_validate(given | fields)


def some_llm(model: str = "tiny") -> dict[str, Resource]:
    """Resources to publish."""
    return {"llm": LLM(endpoint="http://localhost:8000/v1", model=model)}


def with_attempt(rollout: Rollout, attempt: Attempt, **changes: Any) -> AttemptedRollout:
    """The rollout with ``attempt`` as its latest, and ``changes`` of its own fields."""
    return AttemptedRollout.model_validate(rollout.model_dump() | changes | {"attempt": attempt})


# --- Bringing a store into a state -----------------------------------------------------------------------------------


async def totals(store: LightningStore) -> dict[str, Any]:
    """How much is stored, without what the machine has to do with it."""
    return {name: value for name, value in (await store.statistics()).items() if name.startswith("total_")}


async def claim(store: LightningStore, worker_id: str | None = None) -> AttemptedRollout:
    """Dequeue, from a queue that must not be empty."""
    claimed = await store.dequeue_rollout(worker_id=worker_id)
    assert claimed is not None, "the queue is empty"
    return claimed


async def report(store: LightningStore, rollout: AttemptedRollout, status: AttemptStatus) -> Attempt:
    """Set the status of ``rollout.attempt``."""
    return await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status=status)


async def drain(store: LightningStore) -> list[str]:
    """Claim the whole queue; return the rollout ids in the order of the queue."""
    return [claimed.rollout_id for claimed in await store.dequeue_many_rollouts(limit=1000)]


# --- Looking ---------------------------------------------------------------------------------------------------------


async def look(store: LightningStore, rollout: Rollout) -> AttemptedRollout:
    """The rollout as stored now, with its latest attempt."""
    found = await store.get_rollout_by_id(rollout.rollout_id)
    assert type(found) is AttemptedRollout
    return found


async def look_at_attempt(store: LightningStore, rollout: AttemptedRollout) -> Attempt:
    """``rollout.attempt`` as stored now, whether or not it is the latest."""
    attempts = await store.query_attempts(rollout.rollout_id)
    return next(attempt for attempt in attempts if attempt.attempt_id == rollout.attempt.attempt_id)


async def look_at_worker(store: LightningStore, worker_id: str) -> Worker:
    """The worker as stored now."""
    found = await store.get_worker_by_id(worker_id)
    assert found is not None, f"there is no worker {worker_id}"
    return found


async def statuses(store: LightningStore, rollout: AttemptedRollout) -> tuple[str, str]:
    """The statuses of the rollout and of its latest attempt."""
    found = await look(store, rollout)
    return found.status, found.attempt.status


async def within_safety(awaitable: Awaitable[T]) -> T:
    """The result of something that must end by itself, or TimeoutError."""
    async with asyncio.timeout(SAFETY_SECONDS):
        return await awaitable


async def until(condition: Callable[..., object]) -> None:
    """Return when something is true that another task or thread brings about, or raise TimeoutError.

    Nothing depends on how long it pauses in between: it pauses at all so that it does not hold the interpreter's lock,
    which the thread that it waits for needs.
    """
    async with asyncio.timeout(SAFETY_SECONDS):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(_POLL_SECONDS)
