"""Request ids: a call that is made twice with one happens once, and is answered twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import pytest
import pytest_asyncio

from lightning_store.engine.idempotency import request_scope
from lightning_store.errors import NoAttemptsError, RequestIdReusedError, RolloutNotFoundError, StoreError
from lightning_store.model import AttemptedRollout, EnqueueRolloutRequest, ResourcesUpdate, Rollout
from lightning_store.store import LightningStore
from lightning_store.testing.clock import FakeClock
from lightning_store.testing.contract.base import ContractBase, make_span, retrying, some_llm, within_safety

TURNS_MAX: Final = 20
"""Turns of the event loop after which a call is not cancelled any more. One that is answered on another thread may take
any number of them."""


class Scene:
    """A store with something of everything."""

    def __init__(
        self,
        store: LightningStore,
        old_resources: ResourcesUpdate,
        resources: ResourcesUpdate,
        running: AttemptedRollout,
        failed: Rollout,
        queued: list[Rollout],
    ) -> None:
        self.store = store
        self.old_resources = old_resources
        self.resources = resources
        self.running = running
        self.failed = failed
        self.queued = queued

    @classmethod
    async def on(cls, store: LightningStore) -> Scene:
        await store.update_worker("w0")
        old_resources = await store.add_resources(some_llm("old"))
        resources = await store.add_resources(some_llm())
        running = await store.start_rollout("running", config=retrying(3), worker_id="w")
        await store.add_span(make_span(running))
        return cls(
            store,
            old_resources,
            resources,
            running,
            await store.update_rollout((await store.start_rollout("failed")).rollout_id, status="failed"),
            [await store.enqueue_rollout(f"task {number}") for number in range(4)],
        )

    async def state(self) -> object:
        """All that is stored, as queries tell it."""
        store = self.store
        rollouts = list(await store.query_rollouts())
        return (
            rollouts,
            [list(await store.query_attempts(rollout.rollout_id)) for rollout in rollouts],
            [list(await store.query_spans(rollout.rollout_id)) for rollout in rollouts],
            list(await store.query_resources()),
            await store.get_latest_resources(),
            list(await store.query_workers()),
        )


CALLS: Final[dict[str, Callable[[LightningStore, Scene], Awaitable[Any]]]] = {
    "start_rollout": lambda store, _: store.start_rollout({"a": [1, 2.5, None]}, worker_id="w2"),
    "enqueue_rollout": lambda store, _: store.enqueue_rollout("☃", mode="val", metadata={"b": 1}),
    "enqueue_many_rollouts": lambda store, _: store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * 2),
    "dequeue_rollout": lambda store, _: store.dequeue_rollout("w2"),
    "dequeue_many_rollouts": lambda store, _: store.dequeue_many_rollouts(limit=2, worker_id="w2"),
    "start_attempt": lambda store, scene: store.start_attempt(scene.queued[3].rollout_id, "w2"),
    "update_rollout": lambda store, scene: store.update_rollout(scene.running.rollout_id, status="requeuing", input=2),
    "cancel_rollouts": lambda store, scene: store.cancel_rollouts([scene.queued[2].rollout_id]),
    "requeue_rollouts": lambda store, scene: store.requeue_rollouts([scene.failed.rollout_id]),
    "delete_rollouts": lambda store, scene: store.delete_rollouts([scene.queued[1].rollout_id]),
    "delete_workers": lambda store, _: store.delete_workers(["w0", "w-no"]),
    "delete_resources": lambda store, scene: store.delete_resources([scene.old_resources.resources_id]),
    "update_attempt": lambda store, scene: store.update_attempt(
        scene.running.rollout_id, scene.running.attempt.attempt_id, status="failed", metadata={"c": None}
    ),
    "add_span": lambda store, scene: store.add_span(make_span(scene.running, 5)),
    "add_many_spans": lambda store, scene: store.add_many_spans([make_span(scene.running, n) for n in (1, 6, 7)]),
    "get_next_span_sequence_id": lambda store, scene: store.get_next_span_sequence_id(
        scene.running.rollout_id, scene.running.attempt.attempt_id
    ),
    "get_many_span_sequence_ids": lambda store, scene: store.get_many_span_sequence_ids(
        [(scene.running.rollout_id, "a"), (scene.queued[0].rollout_id, "a"), (scene.running.rollout_id, "a")]
    ),
    "add_resources": lambda store, _: store.add_resources(some_llm("other")),
    "update_resources": lambda store, scene: store.update_resources(scene.resources.resources_id, some_llm("newer")),
}
"""A call of each method that changes something once."""
COUNTING: Final = frozenset({"get_next_span_sequence_id", "get_many_span_sequence_ids"})
"""Their change is seen by no query, but by the next number."""
every_call = pytest.mark.parametrize("call", CALLS)


def skip_without_request_ids(store: LightningStore) -> None:
    """A client, say, makes the ids of its calls itself."""
    if not store.replay_window_seconds:
        pytest.skip("replay_window_seconds is 0: this store takes no notice of a request_scope")


class RequestIdsContract(ContractBase):
    """Calls in a ``request_scope``. A store that does not read it (its ``replay_window_seconds`` is 0) is not asked."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def scene(self, store: LightningStore) -> AsyncIterator[Scene]:
        skip_without_request_ids(store)
        yield await Scene.on(store)

    async def requested(
        self,
        scene: Scene,
        call: str,
        request_id: str = "id-1",
        fingerprint: str = "",
        *,
        repeated: bool = False,
    ) -> Any:
        """The reply to a call with a request id; of a list, the list."""
        with request_scope(request_id, fingerprint, repeated=repeated):
            reply = await CALLS[call](scene.store, scene)
        return list(reply) if isinstance(reply, list) else reply

    @every_call
    async def test_x_repeated_it_gets_the_same_reply_and_changes_nothing(self, scene: Scene, call: str) -> None:
        untouched = await scene.state()
        first = await self.requested(scene, call)
        after = await scene.state()
        assert await self.requested(scene, call) == first
        assert await self.requested(scene, call, repeated=True) == first
        assert await scene.state() == after
        assert call in COUNTING or after != untouched

    @every_call
    async def test_x_repeated_later_it_gets_what_was_answered_then(
        self, scene: Scene, clock: FakeClock, call: str
    ) -> None:
        first = await self.requested(scene, call)
        for other in CALLS:
            clock.advance(1)
            await self.requested(scene, other, f"between-{other}")
        await scene.store.delete_rollouts([scene.running.rollout_id])
        later = await scene.state()
        assert await self.requested(scene, call, repeated=True) == first
        assert await scene.state() == later

    @every_call
    async def test_x_another_request_id_is_another_call(self, scene: Scene, call: str) -> None:
        first = await self.requested(scene, call, "id-1")
        second = await self.requested(scene, call, "id-2")
        same_again = {"update_rollout", "cancel_rollouts", "requeue_rollouts", "update_attempt"}
        assert call in same_again or second != first

    @every_call
    async def test_x_a_request_id_is_for_one_call(self, scene: Scene, call: str) -> None:
        names = list(CALLS)
        another = names[(names.index(call) + 3) % len(names)]
        await self.requested(scene, call, fingerprint="this")
        before = await scene.state()
        for other, fingerprint in ((call, "that"), (another, "this")):
            with pytest.raises(RequestIdReusedError, match="id-1"):
                await self.requested(scene, other, fingerprint=fingerprint)
        assert await scene.state() == before

    @every_call
    async def test_x_twins_at_the_same_time_run_once(self, scene: Scene, call: str) -> None:
        replies = await asyncio.gather(*(self.requested(scene, call) for _ in range(4)))
        assert replies == replies[:1] * 4
        after = await scene.state()
        assert await self.requested(scene, call, repeated=True) == replies[0]
        assert await scene.state() == after

    @pytest.mark.parametrize(
        "call", ["start_rollout", "dequeue_many_rollouts", "delete_rollouts", "update_attempt", "add_many_spans"]
    )
    async def test_x_cancelled_anywhere_and_repeated_it_happens_once(self, clock: FakeClock, call: str) -> None:
        """As often as it takes for the first call to come to its end."""
        for turns in range(TURNS_MAX):
            async with self.opened(clock) as store:
                skip_without_request_ids(store)
                scene = await Scene.on(store)
                first = asyncio.create_task(self.requested(scene, call))
                for _ in range(turns):
                    await asyncio.sleep(0)
                ended = first.done()
                first.cancel()
                await within_safety(asyncio.wait([first]))
                reply = await self.requested(scene, call, repeated=True)
                after = await scene.state()
                assert ended is False or first.result() == reply
                assert await self.requested(scene, call, repeated=True) == reply
                assert await scene.state() == after
            if ended:
                return

    # --- What came to nothing ----------------------------------------------------------------------------------------

    async def claim(self, store: LightningStore, *, repeated: bool) -> list[AttemptedRollout]:
        with request_scope("id-1", repeated=repeated):
            return list(await store.dequeue_many_rollouts(limit=1))

    async def test_x_an_empty_claim_is_no_answer_to_keep(self, scene: Scene) -> None:
        store = scene.store
        await store.dequeue_many_rollouts(limit=9)
        assert await self.claim(store, repeated=False) == []
        made = await store.enqueue_rollout("task")
        [claimed] = await self.claim(store, repeated=False)
        assert claimed.rollout_id == made.rollout_id
        assert await self.claim(store, repeated=True) == [claimed]

    async def test_x_an_empty_claim_that_was_repeated_is_kept(self, scene: Scene) -> None:
        """The earlier one may be on its way yet, and must not claim what nobody waits for."""
        store = scene.store
        await store.dequeue_many_rollouts(limit=9)
        assert await self.claim(store, repeated=True) == []
        await store.enqueue_rollout("task")
        assert await self.claim(store, repeated=False) == []
        assert len(await store.dequeue_many_rollouts(limit=9)) == 1

    @pytest.mark.parametrize("repeated", [False, True])
    async def test_x_a_refusal_is_kept_if_the_call_was_repeated(self, scene: Scene, repeated: bool) -> None:
        store, rollout_id = scene.store, scene.queued[0].rollout_id

        async def report() -> Any:
            with request_scope("id-1", repeated=repeated):
                return await store.update_attempt(rollout_id, "latest", status="running")

        with pytest.raises(NoAttemptsError) as refused:
            await report()
        await store.start_attempt(rollout_id)
        if not repeated:
            assert (await report()).status == "running"
            return
        with pytest.raises(NoAttemptsError) as again:
            await report()
        assert (str(again.value), again.value.details) == (str(refused.value), refused.value.details)

    async def test_x_a_refusal_that_was_repeated_is_kept_beside_calls_that_are_granted(self, scene: Scene) -> None:
        store, rollout_id = scene.store, scene.queued[0].rollout_id

        async def report() -> Any:
            with request_scope("id-1", repeated=True):
                return await store.update_attempt(rollout_id, "latest", status="running")

        refused, *_ = await asyncio.gather(report(), *map(store.enqueue_rollout, range(3)), return_exceptions=True)
        assert isinstance(refused, NoAttemptsError)
        await store.start_attempt(rollout_id)
        with pytest.raises(NoAttemptsError):
            await report()

    async def test_x_spans_of_which_some_are_refused_are_answered_alike(self, scene: Scene) -> None:
        spans = [make_span(scene.running, 8), make_span(scene.running, 9, rollout_id="ro-no")]
        errors: list[StoreError] = []
        for _ in range(2):
            with request_scope("id-1"), pytest.raises(StoreError) as caught:
                await scene.store.add_many_spans(spans)
            errors.append(caught.value)
        assert str(errors[0]) == str(errors[1])
        stored = await scene.store.query_spans(scene.running.rollout_id)
        assert [span.sequence_id for span in stored] == [1, 8]

    async def test_x_arguments_are_checked_before_the_request_id_counts(self, scene: Scene) -> None:
        with request_scope("id-1", repeated=True), pytest.raises(ValueError, match="empty"):
            await scene.store.start_attempt("")
        assert await self.requested(scene, "start_attempt", repeated=True)

    # --- Waiting and time --------------------------------------------------------------------------------------------

    async def test_x_a_claim_that_waits_is_answered_once(self, scene: Scene, clock: FakeClock) -> None:
        store = scene.store
        await store.dequeue_many_rollouts(limit=9)

        async def claim(max_wait: float) -> AttemptedRollout | None:
            with request_scope("id-1", repeated=True):
                return await store.dequeue_rollout(max_wait=max_wait)

        waiting = []
        for seconds in (15.0, 16.0):
            waiting.append(asyncio.create_task(claim(seconds)))
            await clock.until_waiting(clock.now() + seconds)
        made = [await store.enqueue_rollout(number) for number in range(2)]
        claimed = await within_safety(asyncio.gather(*waiting))
        assert [one and one.rollout_id for one in claimed] == [made[0].rollout_id] * 2
        assert [one.rollout_id for one in await store.dequeue_many_rollouts(limit=9)] == [made[1].rollout_id]

    async def test_x_a_request_id_is_forgotten_after_the_window(self, scene: Scene, clock: FakeClock) -> None:
        first = await self.requested(scene, "enqueue_rollout")
        clock.advance(scene.store.replay_window_seconds)
        assert await self.requested(scene, "enqueue_rollout") == first
        clock.advance(1)
        assert (await self.requested(scene, "enqueue_rollout")).rollout_id != first.rollout_id

    async def test_x_a_deletion_in_slices_is_repeated_as_a_whole(self, store: LightningStore) -> None:
        skip_without_request_ids(store)
        made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=None)] * 600)
        ids = [one.rollout_id for one in made]
        for _ in range(2):
            with request_scope("id-1"):
                assert await store.delete_rollouts(ids) == ids
        with pytest.raises(RolloutNotFoundError):
            await store.start_attempt(ids[0])
