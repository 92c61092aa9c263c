"""SyncLightningStoreClient: the same calls without asyncio, from any thread, also inside a running loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace import TracerProvider

from lightning_store import AttemptedRollout, InvalidArgumentError, Rollout, RolloutNotFoundError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store_client import LightningStoreClient, LightningStoreSpanProcessor, SyncLightningStoreClient
from lightning_store_client.background import background_thread


@pytest.fixture
def sync(rig):
    with SyncLightningStoreClient(rig.proxy.endpoint) as client:
        yield client


def test_every_public_coroutine_has_a_blocking_form_with_the_same_signature():
    coroutines = {
        name: method
        for name, method in inspect.getmembers(LightningStoreClient, inspect.iscoroutinefunction)
        if not name.startswith("_") and name not in ("run_query", "import_stored")
    }
    assert len(coroutines) > 30
    for name, method in coroutines.items():
        blocking = getattr(SyncLightningStoreClient, name)
        assert not inspect.iscoroutinefunction(blocking)
        assert inspect.signature(blocking) == inspect.signature(method), name


def test_a_rollout_from_end_to_end(sync):
    queued = sync.enqueue_rollout({"question": "6 x 7"})
    claimed = sync.dequeue_rollout("w", max_wait=1)
    assert isinstance(claimed, AttemptedRollout)
    sync.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    [ended] = sync.wait_for_rollouts([queued.rollout_id])
    assert (type(ended), ended.status, ended.input) == (AttemptedRollout, "succeeded", {"question": "6 x 7"})
    assert sync.query_rollouts(status_in=["succeeded"]).total == 1
    assert sync.healthy()


def test_inside_a_running_loop(sync):
    async def cell():
        return sync.enqueue_rollout("from a notebook")

    assert isinstance(asyncio.run(cell()), Rollout)


def test_errors_are_those_of_the_call(sync):
    with pytest.raises(RolloutNotFoundError, match="ro-x"):
        sync.start_attempt("ro-x")
    with pytest.raises(InvalidArgumentError, match="rollout_ids is empty"):
        sync.wait_for_rollouts([""])
    with pytest.raises(InvalidArgumentError, match="endpoint is 'nowhere'"):
        SyncLightningStoreClient("nowhere")


def test_many_threads_share_one(sync):
    ids = []

    def enqueue():
        ids.extend(sync.enqueue_rollout(number).rollout_id for number in range(20))

    threads = [threading.Thread(target=enqueue) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_SECONDS)
    assert len(set(ids)) == 160


def test_a_feed(sync):
    ids = [sync.enqueue_rollout(number).rollout_id for number in range(3)]
    feed = sync.watch_rollouts(ids)
    with pytest.raises(TimeoutError):
        feed.next(timeout=0.01)
    cancelled = sync.cancel_rollouts(ids)
    assert [completed.rollout for completed in feed] == cancelled
    with pytest.raises(StopIteration):
        next(feed)
    feed.close()


def test_a_feed_of_groups(sync):
    member = sync.enqueue_rollout("task", group_id="g")
    assert sync.wait_for_groups(["g"], timeout=0) == []
    feed = sync.watch_groups(["g"], consumer="trainer")
    with pytest.raises(TimeoutError):
        feed.next(timeout=0.01)
    sync.cancel_group("g")
    assert [(group.status, group.rollout_ids) for group in feed] == [("failed", [member.rollout_id])]
    assert sync.mark_consumed("trainer", [member.rollout_id]) == [member.rollout_id]
    assert list(sync.watch_groups(["g"], consumer="trainer")) == []


def test_a_feed_that_is_closed_has_ended(sync):
    feed = sync.watch_rollouts()
    with pytest.raises(TimeoutError):
        feed.next(timeout=0.01)
    feed.close()
    assert list(feed) == []


def test_a_worker_holds_attempts_and_hears_of_their_end(sync):
    with sync.worker("w") as worker:
        queued = [sync.enqueue_rollout(number) for number in range(2)]
        claimed = sync.dequeue_rollout(worker.worker_id)
        with worker.hold(claimed) as cancelled:
            with pytest.raises(TimeoutError):
                cancelled.wait(timeout=0.01)
            assert (cancelled.is_set(), cancelled.reason) == (False, None)
            sync.cancel_rollouts([queued[0].rollout_id])
            assert cancelled.wait(timeout=SAFETY_SECONDS) == cancelled.reason == "cancelled"
        assert sync.get_worker_by_id("w").last_heartbeat_time is not None
        failing = sync.dequeue_rollout(worker.worker_id)

        def act():
            with worker.hold(failing):
                raise ValueError("it broke")

        with pytest.raises(ValueError, match="it broke"):
            act()
    attempt = sync.get_latest_attempt(failing.rollout_id)
    assert (attempt.status, attempt.metadata["exception.type"]) == ("failed", "ValueError")


def test_spans_of_a_blocking_runner_are_stored_with_its_attempt(sync):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(LightningStoreSpanProcessor(sync.client))
    with sync.worker("w") as worker:
        claimed = sync.start_rollout("task", worker_id="w")
        with worker.hold(claimed), provider.get_tracer("agent").start_as_current_span("act"):
            pass
        assert [span.name for span in sync.query_spans(claimed.rollout_id)] == ["act"]


def test_the_thread_that_makes_the_calls_is_refused(sync):
    async def call_from_within():
        sync.statistics()

    with pytest.raises(RuntimeError, match="use LightningStoreClient"):
        background_thread().submit(call_from_within()).result(SAFETY_SECONDS)


def test_a_pickled_copy_has_a_connection_of_its_own(sync):
    queued = sync.enqueue_rollout("task")
    with pickle.loads(pickle.dumps(sync)) as copy:
        assert copy.get_rollout_by_id(queued.rollout_id) == queued
        assert repr(copy) == f"SyncLightningStoreClient({sync.endpoint!r})"


def test_an_asynchronous_caller_shares_its_connection(sync):
    queued = sync.enqueue_rollout("task")

    async def read():
        return await sync.client.get_rollout_by_id(queued.rollout_id)

    assert asyncio.run(read()) == queued


def test_ctrl_c_ends_a_call_and_the_client_goes_on(sync, rig):
    code = f"""if True:
        import os, signal, threading, time
        from lightning_store_client import SyncLightningStoreClient

        store = SyncLightningStoreClient({sync.endpoint!r})
        store.statistics()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            store.dequeue_rollout(max_wait=60)
        except KeyboardInterrupt:
            print("interrupted")
        store.enqueue_rollout("after")
        print(store.dequeue_rollout().input)
    """
    environment = {**os.environ}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert (result.stdout.split(), result.stderr) == (["interrupted", "after"], "")


def test_a_closed_client_says_so(rig):
    with SyncLightningStoreClient(rig.proxy.endpoint) as store:
        store.statistics()
    with pytest.raises(RuntimeError, match="closed"):
        store.statistics()
