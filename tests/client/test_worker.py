"""A runner's heartbeats, and how it hears that its attempt was called off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import queue
import socket
import threading

import grpc
import pytest

from lightning_store import InMemoryLightningStore, LightningStore, RolloutConfig
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store_client import worker as worker_module
from lightning_store_client.background import THREAD_NAME
from lightning_store_client.worker import LISTEN_AFTER_SECONDS, LISTEN_PAUSE_SECONDS
from tests.logged import levels

INTERVAL = 7.25
"""No other timer of these tests is due at a multiple of it."""
WORKER = "runner-7"
RETRIED = RolloutConfig(max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"])


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def timed(make_rig, clock):
    """Server and client on one fake clock; a worker that has sent heartbeats and falls silent is given up."""
    return make_rig(InMemoryLightningStore(clock=clock, worker_timeout_seconds=30.0))


@pytest.fixture(autouse=True)
def _no_heartbeats_left():
    yield
    assert len(background_threads()) <= 1


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def entered(rig, clock, **settings):
    """A client and a worker of it that is to be entered."""
    client = rig.client(clock=clock)
    return client, client.worker(WORKER, **{"interval": INTERVAL, **settings})


async def claim(client, input="task", config=None):
    await client.enqueue_rollout(input, config=config, group_id="group")
    claimed = await client.dequeue_rollout(WORKER)
    assert claimed is not None
    return claimed


async def beat(clock, times=1):
    """Let it be time for so many heartbeats; return when the last one is done."""
    for _ in range(times):
        await clock.until_waiting(clock.now() + INTERVAL)
        clock.advance(INTERVAL)
    await clock.until_waiting(clock.now() + INTERVAL)


async def report(client, claimed, status):
    return await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status=status)


# --- The end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["succeeded", "cancelled", None])
def test_a_runner_that_ends_cleanly_does_not_stay_busy(timed, clock, outcome):
    async def scenario():
        client, worker = entered(timed, clock)
        async with client, worker:
            claimed = await claim(client)
            if outcome == "cancelled":
                await client.cancel_rollouts([claimed.rollout_id])
            elif outcome is not None:
                await report(client, claimed, outcome)
        found = await timed.store.get_worker_by_id(WORKER)
        assert (found.status, found.current_rollout_id) == ("unknown", None)
        if outcome is None:  # its attempt is given up when it would have been otherwise
            assert (await timed.store.get_latest_attempt(claimed.rollout_id)).status == "preparing"
            clock.advance(31)
            assert (await timed.store.get_latest_attempt(claimed.rollout_id)).status == "unresponsive"

    asyncio.run(scenario())


def test_the_end_of_a_runner_needs_no_server(timed, clock, broken, caplog):
    async def scenario():
        client, worker = entered(timed, clock)
        async with client, worker:
            timed.proxy.breaks("ReleaseWorker", broken())

    asyncio.run(scenario())
    assert len(timed.proxy.calls("ReleaseWorker")) == 1
    assert levels(caplog) == []


# --- Heartbeats ------------------------------------------------------------------------------------------------------


def test_heartbeats_begin_at_entry_and_come_at_every_interval(timed, clock):
    async def scenario():
        _, session = entered(timed, clock)
        async with session:
            for _ in range(3):
                record = await timed.store.get_worker_by_id(WORKER)
                assert record.last_heartbeat_time == clock.now()
                await beat(clock)

    asyncio.run(scenario())
    assert len(timed.proxy.calls("UpdateWorker")) == 4


@pytest.mark.parametrize("interval", [1e300, pytest.param(10**400, id="large")])
def test_any_number_is_an_interval(timed, clock, interval):
    async def scenario():
        _, session = entered(timed, clock, interval=interval)
        async with session:
            async with asyncio.timeout(SAFETY_SECONDS):
                while max(clock.pending(), default=0.0) < 1e300:  # noqa: ASYNC110
                    await asyncio.sleep(0)

    asyncio.run(scenario())


def test_they_carry_stats_of_the_process_and_the_machine(timed, clock):
    async def scenario():
        _, session = entered(timed, clock)
        async with session:
            await beat(clock)
            return (await timed.store.get_worker_by_id(WORKER)).heartbeat_stats

    stats = asyncio.run(scenario())
    assert (stats["host"], stats["pid"]) == (socket.gethostname(), os.getpid())
    assert stats["process_rss_bytes"] > 1024 * 1024
    assert all(0 <= stats[f"{what}_memory_percent"] <= 100 for what in ("process", "machine"))
    assert all(stats[f"{what}_cpu_percent"] >= 0 for what in ("process", "machine"))
    assert stats["machine_memory_available_bytes"] > 0


def test_a_runner_adds_stats_of_its_own_anew_each_time(timed, clock):
    temperatures = iter((60, 61, 62))

    async def scenario():
        _, session = entered(timed, clock, stats=lambda: {"gpu_celsius": next(temperatures), "host": "mine"})
        async with session:
            await beat(clock)

    asyncio.run(scenario())
    sent = [json.loads(call.message.heartbeat_stats_json) for call in timed.proxy.calls("UpdateWorker")]
    assert [(stats["gpu_celsius"], stats["host"]) for stats in sent] == [(60, "mine"), (61, "mine")]
    assert all(stats["pid"] == os.getpid() for stats in sent)


@pytest.mark.parametrize("bad", [lambda: 1 / 0, lambda: {"lock": threading.Lock()}, lambda: 5])
def test_stats_that_cannot_be_had_do_not_stop_heartbeats(timed, clock, caplog, bad):
    outcomes = iter((dict, bad, bad, dict))

    def stats():
        return next(outcomes)()

    async def scenario():
        _, session = entered(timed, clock, stats=stats)
        async with session:
            await beat(clock, 3)
            record = await timed.store.get_worker_by_id(WORKER)
            assert record.last_heartbeat_time == clock.now()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    with_stats = [call.message.HasField("heartbeat_stats_json") for call in timed.proxy.calls("UpdateWorker")]
    assert with_stats == [True, False, False, True]
    assert levels(caplog) == ["WARNING", "INFO"]
    assert f"stats for the heartbeat of worker '{WORKER}'" in caplog.text


def test_the_time_that_a_heartbeat_takes_does_not_delay_the_next(make_rig, hooked, clock):
    inner = InMemoryLightningStore(clock=clock)

    async def slow(worker_id, **stats):
        clock.advance(3.0)
        return await inner.update_worker(worker_id, **stats)

    rig = make_rig(hooked(inner, update_worker=slow))

    async def scenario():
        _, session = entered(rig, clock)
        async with session:
            await clock.until_waiting(clock.now() + INTERVAL)
            clock.advance(INTERVAL)
            await clock.until_waiting(clock.now() + INTERVAL)

    start = clock.now()
    asyncio.run(scenario())
    assert clock.now() == start + 3.0 + INTERVAL + 3.0


@pytest.mark.parametrize(("interval", "seconds_max"), [(2.0, 2.0), (600.0, 5.0)])
def test_a_heartbeat_has_a_short_deadline(timed, clock, interval, seconds_max):
    async def scenario():
        _, session = entered(timed, clock, interval=interval)
        async with session:
            pass

    asyncio.run(scenario())
    [sent] = timed.proxy.calls("UpdateWorker")
    assert 0 < sent.seconds_left < seconds_max + 0.5


def test_heartbeats_go_on_while_the_event_loop_is_blocked(timed, clock):
    """And an agent that never awaits anything can still look whether it was called off."""
    claims: queue.SimpleQueue[str] = queue.SimpleQueue()
    reasons = []

    async def runner():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                claims.put(claimed.rollout_id)
                while not cancelled.is_set():
                    sum(range(10_000))
                reasons.append(worker.cancelled.reason)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                reasons.append("went on")

    async def scenario():
        rollout_id = await asyncio.to_thread(claims.get, timeout=SAFETY_SECONDS)
        await beat(clock, 6)
        assert (await timed.store.get_latest_attempt(rollout_id)).status == "preparing"  # or it were unresponsive
        await timed.store.cancel_rollouts([rollout_id])

    thread = threading.Thread(target=lambda: asyncio.run(runner()))
    thread.start()
    asyncio.run(scenario())
    thread.join(SAFETY_SECONDS)
    assert reasons == ["cancelled"]


def test_heartbeats_do_not_queue_behind_the_retries_of_other_calls(timed, clock, broken):
    timed.proxy.breaks("GetStatistics", broken())

    async def scenario():
        client = timed.client(clock=clock, timeout=1e6, retry_delays=(1e5,))
        async with client.worker(WORKER, interval=INTERVAL):
            call = asyncio.create_task(client.statistics())
            await timed.proxy.until_sent("GetStatistics")
            await beat(clock, 2)
            assert not call.done()
            call.cancel()

    asyncio.run(scenario())
    assert len(timed.proxy.calls("UpdateWorker")) == 3


# --- Failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_first_heartbeat_that_fails_does_not_stop_the_runner(timed, clock, broken, caplog, code):
    timed.proxy.breaks("UpdateWorker", broken(code))

    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed):
                await report(client, claimed, "succeeded")
            await beat(clock)
            assert (await timed.store.get_worker_by_id(WORKER)).last_heartbeat_time == clock.now()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert levels(caplog) == ["WARNING", "INFO"]
    assert f"heartbeat of worker '{WORKER}'" in caplog.text
    assert "broken by the proxy" in caplog.text


def test_a_server_that_nobody_reaches_does_not_stop_the_runner(dead_endpoint, clock):
    from lightning_store_client import LightningStoreClient

    async def scenario():
        async with (
            LightningStoreClient(dead_endpoint, clock=clock) as client,
            client.worker(WORKER, interval=INTERVAL) as worker,
        ):
            await beat(clock)
            assert not worker.cancelled.is_set()

    asyncio.run(scenario())


def test_a_server_that_is_away_for_some_heartbeats_is_logged_twice(timed, clock, broken, caplog):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                timed.proxy.breaks("UpdateWorker", broken(), broken(lose_reply=True), broken())
                await start_another(timed.store, claimed, clock)
                await beat(clock, 3)
                assert not cancelled.is_set()
                await beat(clock)
                await asyncio.sleep(SAFETY_SECONDS)
            assert cancelled.reason == "superseded"
            await beat(clock, 2)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert levels(caplog) == ["WARNING", "INFO", "INFO"]
    assert "works again, after 3 that failed" in caplog.text
    assert len(timed.proxy.calls("UpdateWorker")) == 7  # none was retried


def test_a_question_about_the_attempt_that_fails_is_asked_again(timed, clock, broken):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            async with worker.hold(await claim(client, config=RolloutConfig(timeout_seconds=1.0))) as cancelled:
                timed.proxy.breaks("GetRollout", broken())
                await beat(clock)
                assert not cancelled.is_set()
                await beat(clock)
                await asyncio.sleep(SAFETY_SECONDS)
            assert cancelled.reason == "lost"

    asyncio.run(scenario())


# --- Called off ------------------------------------------------------------------------------------------------------


async def cancel(store, claimed, clock):
    await store.cancel_rollouts([claimed.rollout_id])


async def cancel_group(store, claimed, clock):
    await store.cancel_group("group")


async def set_to_cancelled(store, claimed, clock):
    await store.update_rollout(claimed.rollout_id, status="cancelled")


async def start_another(store, claimed, clock):
    await store.start_attempt(claimed.rollout_id, worker_id="other")


async def start_another_and_cancel(store, claimed, clock):
    await start_another(store, claimed, clock)
    await cancel(store, claimed, clock)


async def give_up(store, claimed, clock):
    await store.update_rollout(claimed.rollout_id, config=RolloutConfig(timeout_seconds=1.0))


async def give_up_and_start_another(store, claimed, clock):
    await store.update_attempt(claimed.rollout_id, "latest", status="unresponsive")
    await start_another(store, claimed, clock)


async def take_over(store, claimed, clock):
    await store.update_attempt(claimed.rollout_id, "latest", worker_id="other")


async def claim_under_the_same_id(store, claimed, clock):
    await store.enqueue_rollout("of another process")
    await store.dequeue_rollout(WORKER)


async def claim_under_the_same_id_and_cancel(store, claimed, clock):
    await claim_under_the_same_id(store, claimed, clock)
    await cancel(store, claimed, clock)


async def claim_under_the_same_id_and_start_another(store, claimed, clock):
    await claim_under_the_same_id(store, claimed, clock)
    await start_another(store, claimed, clock)


CALLED_OFF = [
    (cancel, "cancelled"),
    (set_to_cancelled, "cancelled"),
    (claim_under_the_same_id_and_cancel, "cancelled"),
    (start_another, "superseded"),
    (start_another_and_cancel, "superseded"),
    (give_up_and_start_another, "superseded"),
    (claim_under_the_same_id_and_start_another, "superseded"),
    (give_up, "lost"),
    (take_over, "lost"),
]


@pytest.mark.parametrize(("act", "reason"), CALLED_OFF, ids=lambda value: getattr(value, "__name__", value))
def test_an_attempt_that_is_called_off_ends_its_block_at_the_next_heartbeat(timed, clock, caplog, act, reason):
    went_on = []

    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                assert cancelled is worker.cancelled
                await beat(clock)
                assert (cancelled.is_set(), cancelled.reason) == (False, None)
                await act(timed.store, claimed, clock)
                await beat(clock)
                await asyncio.sleep(SAFETY_SECONDS)
                went_on.append(claimed)
            assert (worker.cancelled.is_set(), worker.cancelled.reason) == (True, reason)
            await beat(clock, 2)
            return claimed

    with caplog.at_level(logging.INFO):
        claimed = asyncio.run(scenario())
    assert not went_on
    assert levels(caplog) == ["INFO"]
    attempt = f"attempt {claimed.attempt.attempt_id} of rollout {claimed.rollout_id}"
    assert f"worker '{WORKER}': {attempt} is called off: {reason}" in caplog.text


@pytest.mark.parametrize(("act", "reason"), [(cancel, "cancelled"), (start_another, "superseded"), (give_up, "lost")])
def test_a_block_that_is_not_to_be_interrupted_awaits_the_word(timed, clock, act, reason):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed, interrupt=False) as cancelled:
                waiting = asyncio.create_task(cancelled.wait())
                await act(timed.store, claimed, clock)
                await beat(clock, 3)
                assert await asyncio.wait_for(waiting, SAFETY_SECONDS) == reason
                assert await cancelled.wait() == cancelled.reason == reason

    asyncio.run(scenario())


def test_an_attempt_whose_heartbeats_did_not_arrive_in_time_is_lost(timed, clock, broken):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                await beat(clock)
                timed.proxy.breaks("UpdateWorker", *[broken()] * 5)
                await beat(clock, 5)
                assert (await timed.store.get_latest_attempt(claimed.rollout_id)).status == "unresponsive"
                await beat(clock)
                await asyncio.sleep(SAFETY_SECONDS)
            assert cancelled.reason == "lost"

    asyncio.run(scenario())


def test_a_store_that_has_forgotten_everything_has_lost_the_attempt(make_rig, hooked, clock):
    """As one in memory has after a restart."""
    stores: list[LightningStore] = [InMemoryLightningStore(clock=clock)]

    def current(method):
        async def call(*args, **kwargs):
            return await getattr(stores[-1], method)(*args, **kwargs)

        return call

    methods = ("update_worker", "get_rollout_by_id", "query_attempts")
    rig = make_rig(hooked(stores[0], **{method: current(method) for method in methods}))

    async def scenario():
        client, session = entered(rig, clock)
        async with session as worker:
            async with worker.hold(await claim(client)) as cancelled:
                stores.append(InMemoryLightningStore(clock=clock, strict=True))
                await beat(clock)
                await asyncio.sleep(SAFETY_SECONDS)
            assert cancelled.reason == "lost"

    asyncio.run(scenario())


# --- Called off between two heartbeats -------------------------------------------------------------------------------


async def listened(timed, clock):
    """Let the store be asked to tell of the end of what is held; return when it waits."""
    await clock.until_waiting(clock.now() + LISTEN_AFTER_SECONDS)
    clock.advance(LISTEN_AFTER_SECONDS)
    await timed.proxy.until_sent("WaitForRollouts")


async def delete(store, claimed, clock):
    await store.delete_rollouts([claimed.rollout_id])


@pytest.mark.parametrize(
    ("act", "reason"),
    [(cancel, "cancelled"), (cancel_group, "cancelled"), (set_to_cancelled, "cancelled"), (delete, "lost")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_attempt_that_is_cancelled_hears_of_it_without_a_heartbeat(timed, clock, act, reason):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                await listened(timed, clock)
                await act(timed.store, claimed, clock)
                await asyncio.sleep(SAFETY_SECONDS)
            assert cancelled.reason == reason

    asyncio.run(scenario())
    assert len(timed.proxy.calls("UpdateWorker")) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_listening_that_fails_is_tried_again(timed, clock, broken, code, monkeypatch):
    timed.proxy.breaks("WaitForRollouts", broken(code))
    monkeypatch.setattr(worker_module, "jittered", lambda seconds: seconds)

    async def scenario():
        client, session = entered(timed, clock, interval=1e6)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                await listened(timed, clock)
                await clock.until_waiting(clock.now() + LISTEN_PAUSE_SECONDS)
                clock.advance(LISTEN_PAUSE_SECONDS)
                await timed.proxy.until_sent("WaitForRollouts", 2)
                await cancel(timed.store, claimed, clock)
                await asyncio.sleep(SAFETY_SECONDS)
            assert cancelled.reason == "cancelled"

    asyncio.run(scenario())


def test_an_outcome_of_its_own_calls_nothing_off(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                await listened(timed, clock)
                await report(client, claimed, "succeeded")
                due = clock.now() + INTERVAL - LISTEN_AFTER_SECONDS
                await clock.until_waiting(due)
                clock.advance(INTERVAL)
                await clock.until_waiting(clock.now() + INTERVAL)
            assert not cancelled.is_set()

    asyncio.run(scenario())
    assert len(timed.proxy.calls("WaitForRollouts")) == 1


def test_a_short_attempt_costs_no_call(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            for _ in range(3):
                async with worker.hold(await claim(client)):
                    pass
            await beat(clock)

    asyncio.run(scenario())
    assert not timed.proxy.calls("WaitForRollouts")


def test_one_thread_for_any_number_of_attempts(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(session)
            before = threading.active_count()
            for number in range(50):
                worker = await stack.enter_async_context(client.worker(str(number), interval=INTERVAL))
                await client.enqueue_rollout(number)
                claimed = await client.dequeue_rollout(str(number))
                await stack.enter_async_context(worker.hold(claimed))
            assert len(background_threads()) == 1
            assert threading.active_count() <= before + 32  # of the proxy's pool

    asyncio.run(scenario())


# --- A block that raises ---------------------------------------------------------------------------------------------


class AgentError(Exception):
    pass


class SilentError(Exception):
    def __str__(self):
        raise TypeError


async def raising(session, client, error, **settings):
    """The latest attempt, after a block that raised."""
    async with session as worker:
        claimed = await claim(client)
        with pytest.raises(type(error)) as caught:
            async with worker.hold(claimed, **settings):
                raise error
        assert caught.value is error
        return await client.get_latest_attempt(claimed.rollout_id)


@pytest.mark.parametrize(
    ("error", "name"), [(ValueError("it broke"), "ValueError"), (AgentError("it broke"), f"{__name__}.AgentError")]
)
def test_an_attempt_whose_block_raises_is_reported_as_failed(timed, clock, error, name):
    async def scenario():
        client, session = entered(timed, clock)
        attempt = await raising(session, client, error)
        assert attempt.status == "failed"
        assert attempt.metadata == {"exception.type": name, "exception.message": "it broke"}
        assert (await client.get_rollout_by_id(attempt.rollout_id)).status == "failed"

    asyncio.run(scenario())


def test_a_failure_is_not_reported_if_nobody_wants_it(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        assert (await raising(session, client, ValueError(), report_failure=False)).status == "preparing"

    asyncio.run(scenario())


def test_the_text_of_a_failure_has_a_limit_and_need_not_be_there(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        long = await raising(session, client, ValueError("x" * 100_000))
        assert long.metadata["exception.message"] == "x" * 4000
        silent = await raising(session, client, SilentError())
        assert silent.metadata["exception.message"] == "<SilentError without a text>"

    asyncio.run(scenario())


def test_what_was_reported_before_the_block_raised_stays(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)

            async def act():
                async with worker.hold(claimed):
                    await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, metadata={"a": 1})
                    await report(client, claimed, "succeeded")
                    raise ValueError("late")

            with pytest.raises(ValueError, match="late"):
                await act()
            attempt = await client.get_latest_attempt(claimed.rollout_id)
            assert (attempt.status, attempt.metadata) == ("succeeded", {"a": 1})

    asyncio.run(scenario())


def test_metadata_that_was_set_in_the_block_stays_with_the_failure(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)

            async def act():
                async with worker.hold(claimed):
                    await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, metadata={"seed": 1})
                    raise KeyError("x")

            with pytest.raises(KeyError):
                await act()
            attempt = await client.get_latest_attempt(claimed.rollout_id)
            assert attempt.metadata == {"seed": 1, "exception.type": "KeyError", "exception.message": "'x'"}

    asyncio.run(scenario())


def test_a_failure_that_cannot_be_reported_is_logged_and_raised(timed, clock, broken, caplog):
    timed.proxy.breaks("UpdateAttempt", broken(), broken())

    async def scenario():
        client = timed.client(clock=clock, retry_delays=())
        attempt = await raising(client.worker(WORKER, interval=INTERVAL), client, ValueError("it broke"))
        assert attempt.status == "preparing"
        return attempt

    with caplog.at_level(logging.WARNING):
        attempt = asyncio.run(scenario())
    assert f"the failure of attempt {attempt.attempt_id} is not reported: broken by the proxy" in caplog.text


# --- Not called off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_an_attempt_that_was_reported_is_not_lost(timed, clock, status):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                await report(client, claimed, status)
                await beat(clock, 2)
                assert (await timed.store.get_worker_by_id(WORKER)).status == "idle"
            assert not cancelled.is_set()

    asyncio.run(scenario())


def test_an_attempt_that_was_reported_is_not_superseded_by_its_retry(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client, config=RETRIED)
            async with worker.hold(claimed) as cancelled:
                await report(client, claimed, "failed")
                assert (await timed.store.dequeue_rollout("other")).rollout_id == claimed.rollout_id
                await beat(clock, 2)
            assert not cancelled.is_set()

    asyncio.run(scenario())


def test_another_claim_under_the_same_id_takes_nothing_away(timed, clock):
    """Two processes that call themselves the same, by mistake."""

    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                await claim_under_the_same_id(timed.store, claimed, clock)
                await beat(clock, 6)
                assert (await report(client, claimed, "succeeded")).status == "succeeded"
            assert not cancelled.is_set()

    asyncio.run(scenario())


def test_what_happens_to_an_attempt_that_is_held_no_longer_is_not_told(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                pass
            await timed.store.cancel_rollouts([claimed.rollout_id])
            await beat(clock, 2)
            assert not cancelled.is_set()

    asyncio.run(scenario())
    assert not timed.proxy.calls("GetRollout")


# --- The block -------------------------------------------------------------------------------------------------------


def test_each_attempt_has_word_of_its_own(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            seen = [worker.cancelled]
            for number in range(4):
                claimed = await claim(client)
                async with worker.hold(claimed) as cancelled:
                    assert not worker.cancelled.is_set()
                    seen.append(cancelled)
                    if number % 2:
                        await timed.store.cancel_rollouts([claimed.rollout_id])
                        await beat(clock)
                        await asyncio.sleep(SAFETY_SECONDS)
                    await report(client, claimed, "succeeded")
                assert worker.cancelled is cancelled
        assert [cancelled.reason for cancelled in seen] == [None, None, "cancelled", None, "cancelled"]

    asyncio.run(scenario())


def test_an_agent_in_a_thread_looks_for_itself(timed, clock):
    """And cannot mistake the word about the next attempt for its own."""

    def agent(cancelled, started, may_end):
        started.set()
        assert may_end.wait(SAFETY_SECONDS)
        return cancelled.reason

    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            may_end = threading.Event()
            claimed = await claim(client)
            async with worker.hold(claimed) as cancelled:
                started = threading.Event()
                work = asyncio.create_task(asyncio.to_thread(agent, cancelled, started, may_end))
                await asyncio.to_thread(started.wait, SAFETY_SECONDS)
                await timed.store.cancel_rollouts([claimed.rollout_id])
                await beat(clock)
                await asyncio.sleep(SAFETY_SECONDS)
            async with worker.hold(await claim(client)) as other:
                may_end.set()
                assert await work == "cancelled"
                assert not other.is_set()

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [KeyError("agent"), TimeoutError("of the agent itself")])
def test_an_error_of_the_agent_gets_out(timed, clock, error):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            with pytest.raises(type(error)) as caught:
                async with worker.hold(await claim(client)):
                    raise error
            assert caught.value is error
            assert not worker.cancelled.is_set()
            async with worker.hold(await claim(client)):
                pass

    asyncio.run(scenario())


def test_a_runner_that_is_cancelled_itself_is_cancelled(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        holding = asyncio.Event()

        async def runner():
            async with session as worker, worker.hold(await claim(client)):
                holding.set()
                await asyncio.sleep(SAFETY_SECONDS)

        task = asyncio.create_task(runner())
        await holding.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_loop_that_was_closed_is_not_told(timed, clock, caplog):
    client, session = entered(timed, clock)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(session.__aenter__())
    claimed = loop.run_until_complete(claim(client))
    holding = session.hold(claimed)
    cancelled = loop.run_until_complete(holding.__aenter__())
    loop.close()

    async def scenario():
        await timed.store.cancel_rollouts([claimed.rollout_id])
        await beat(clock, 2)
        assert cancelled.is_set()
        await session.__aexit__()

    asyncio.run(scenario())
    assert "WARNING" not in levels(caplog)


# --- The end ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hanging(make_rig, hooked, clock):
    """A store that does not answer heartbeats after the first, and tells of each that comes and is cancelled."""
    inner = InMemoryLightningStore(clock=clock)
    events: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def update_worker(worker_id, **stats):
        if await inner.get_worker_by_id(worker_id) is None:
            return await inner.update_worker(worker_id, **stats)
        events.put("came")
        try:
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.put("cancelled")
            raise

    return make_rig(hooked(inner, update_worker=update_worker)), events


@pytest.mark.parametrize("end", ["well", "error"])
def test_leaving_does_not_wait_for_a_heartbeat_that_is_under_way(hanging, clock, end):
    rig, events = hanging

    async def scenario():
        _, session = entered(rig, clock, interval=1e6)
        async with session:
            await clock.until_waiting(clock.now() + 1e6)
            clock.advance(1e6)
            assert await asyncio.to_thread(events.get, timeout=SAFETY_SECONDS) == "came"
            if end == "error":
                raise KeyError(end)

    if end == "error":
        with pytest.raises(KeyError):
            asyncio.run(scenario())
    else:
        asyncio.run(scenario())
    assert events.get(timeout=3.0) == "cancelled"  # long before the deadline


def test_leaving_does_not_wait_for_the_next_heartbeat(timed, clock):
    async def scenario():
        _, session = entered(timed, clock)
        async with session:
            await clock.until_waiting(clock.now() + INTERVAL)
        assert not clock.pending()

    asyncio.run(scenario())


def test_entering_can_be_cancelled(make_rig, hooked, clock):
    came: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def hang(worker_id, **stats):
        came.put(None)
        await asyncio.Event().wait()

    rig = make_rig(hooked(InMemoryLightningStore(), update_worker=hang))

    async def scenario():
        _, session = entered(rig, clock)
        task = asyncio.create_task(session.__aenter__())
        await asyncio.to_thread(came.get, timeout=SAFETY_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_worker_can_be_entered_again_after_it_was_left(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        for _ in range(2):
            async with session as worker:
                assert worker is session
                async with worker.hold(await claim(client)):
                    await beat(clock)

    asyncio.run(scenario())
    assert len(timed.proxy.calls("UpdateWorker")) == 4


def test_heartbeats_of_a_client_that_is_closed_end_without_noise(timed, clock, caplog):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker, worker.hold(await claim(client)) as cancelled:
            await client.close()
            await clock.until_waiting(clock.now() + INTERVAL)
            clock.advance(INTERVAL)
        assert not cancelled.is_set()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert levels(caplog) == []


def test_a_heartbeat_that_is_under_way_when_the_client_is_closed_ends_without_noise(hanging, clock, caplog):
    rig, events = hanging

    async def scenario():
        client, session = entered(rig, clock)
        async with session:
            await clock.until_waiting(clock.now() + INTERVAL)
            clock.advance(INTERVAL)
            assert await asyncio.to_thread(events.get, timeout=SAFETY_SECONDS) == "came"
            await client.close()
            assert await asyncio.to_thread(events.get, timeout=SAFETY_SECONDS) == "cancelled"

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert levels(caplog) == []


def test_a_worker_of_a_closed_client_cannot_be_entered(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        await client.close()
        with pytest.raises(RuntimeError, match="is closed; make a new one"):
            await session.__aenter__()

    asyncio.run(scenario())


# --- Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_id", ["", None, 7])
def test_a_worker_needs_an_id(rig, worker_id):
    with pytest.raises((ValueError, TypeError), match="worker_id is"):
        rig.client().worker(worker_id)


@pytest.mark.parametrize("interval", [0, -1.0, math.nan, math.inf, "10", None])
def test_an_interval_is_more_than_0_seconds(rig, interval):
    with pytest.raises((ValueError, TypeError), match=r"interval is .*give .*seconds"):
        rig.client().worker(WORKER, interval=interval)


def test_stats_are_a_function(rig):
    with pytest.raises(TypeError, match=r"stats is \{'gpu': 1\}; give a function"):
        rig.client().worker(WORKER, stats={"gpu": 1})


def test_only_what_this_worker_claimed_can_be_held(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            await client.enqueue_rollout("task")
            with pytest.raises(TypeError, match="claimed is None; give the rollout that was claimed"):
                async with worker.hold(None):
                    pass
            for other in ("other", None):
                await client.enqueue_rollout("task")
                claimed = await client.dequeue_rollout(other)
                with pytest.raises(ValueError, match=f"held by worker {other!r}; claim it with worker_id='{WORKER}'"):
                    async with worker.hold(claimed):
                        pass

    asyncio.run(scenario())


def test_a_worker_holds_one_attempt_at_a_time(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        async with session as worker:
            first, second = [await claim(client) for _ in range(2)]
            async with worker.hold(first) as cancelled:
                with pytest.raises(RuntimeError, match=f"holds attempt {first.attempt.attempt_id} already"):
                    async with worker.hold(second):
                        pass
                assert worker.cancelled is cancelled

    asyncio.run(scenario())


def test_nothing_is_held_without_heartbeats(timed, clock):
    async def scenario():
        client, session = entered(timed, clock)
        claimed = await claim(client)
        with pytest.raises(RuntimeError, match="is not entered; use `async with`"):
            _ = session.cancelled
        async with session:
            with pytest.raises(RuntimeError, match="is entered already"):
                await session.__aenter__()
        with pytest.raises(RuntimeError, match="sends no heartbeats here; use `async with`"):
            async with session.hold(claimed):
                pass

    asyncio.run(scenario())


# --- A runner --------------------------------------------------------------------------------------------------------


def test_the_loop_of_a_runner(timed, clock):
    """As the README shows it."""
    off = []

    async def act(input):
        if input == "bad":
            raise ArithmeticError(input)
        if input == "endless":
            await beat(clock, 2)
            await timed.store.cancel_rollouts([rollouts["endless"].rollout_id])
            await beat(clock)
            await asyncio.sleep(SAFETY_SECONDS)

    async def runner():
        store = timed.client(clock=clock)
        async with store.worker("runner-1", interval=INTERVAL) as worker:
            while (claimed := await store.dequeue_rollout(worker.worker_id, max_wait=30)) is not None:
                async with worker.hold(claimed) as cancelled:
                    try:
                        await act(claimed.input)
                        status = "succeeded"
                    except Exception:
                        status = "failed"
                    await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status=status)
                if cancelled.is_set():
                    off.append((claimed.input, cancelled.reason))

    rollouts = {}

    async def scenario():
        for input in ("good", "endless", "bad", "good again"):
            rollouts[input] = await timed.store.enqueue_rollout(input)
        running = asyncio.create_task(runner())
        await timed.proxy.until_sent("DequeueRollouts", 5)
        for leap in (20.0, 10.0):  # a long wait is several calls
            await clock.until_waiting(clock.now() + leap)
            clock.advance(leap)
        await running
        return {rollout.input: rollout.status for rollout in await timed.store.query_rollouts()}

    statuses = asyncio.run(scenario())
    assert statuses == {"good": "succeeded", "endless": "cancelled", "bad": "failed", "good again": "succeeded"}
    assert off == [("endless", "cancelled")]
