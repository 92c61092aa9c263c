"""Whatever is stored again and again ends at the limit of memory, and can be reported on and deleted there."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_store import PromptTemplate, ResourceExhaustedError
from lightning_store.v1 import rollout_pb2, span_pb2, worker_pb2
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest, SessionResponse
from lightning_store_client import SyncLightningStoreClient
from lightning_store_server.sessions import PATH
from tests.attacks.target import MIB, Bystander, Target, long_form, start_target

pytestmark = pytest.mark.slow

LIMIT = 8 * MIB
LONG_ID = "w" * 1000
AT_A_TIME = 500


class Flood:
    """A session that makes many calls, and how many of them ended well."""

    def __init__(self, target: Target) -> None:
        self._channel = target.raw(("grpc.max_receive_message_length", -1))
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: Any = self._channel.stream_stream(PATH)(iter(self._messages.get, None))

    def send(self, method: str, requests: list[Any]) -> int:
        calls = [
            SessionCall(id=number + 1, method=method, request=one.SerializeToString(), repeated=True)
            for number, one in enumerate(requests)
        ]
        self._messages.put(SessionRequest(calls=calls).SerializeToString())
        left, well = len(calls), 0
        while left:
            replies = SessionResponse.FromString(next(self._replies)).replies
            left -= len(replies)
            well += sum(not one.HasField("error") for one in replies)
        return well

    def until_refused(self, method: str, request_of: Any) -> int:
        """Until not one of many calls ends well; how many did before."""
        made = 0
        while True:
            well = self.send(method, [request_of(made + number) for number in range(AT_A_TIME)])
            made += AT_A_TIME
            if not well:
                return made
            assert made * 1000 < 10 * LIMIT, f"{method} goes on for ever"

    def close(self) -> None:
        self._messages.put(None)
        self._channel.close()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Target]:
    target = start_target("memory:", tmp_path / "log", "--memory-limit", f"{LIMIT}B")
    try:
        yield target
        assert target.end() == 0
    finally:
        target.kill()


def test_everything_that_is_kept_counts(full: Target) -> None:
    with SyncLightningStoreClient(full.endpoint, retry_delays=()) as client:
        mine = client.start_rollout("a task", worker_id="mine")
        before = full.reset_peak()
        flood = Flood(full)

        def attempt(number: int) -> Any:
            update = rollout_pb2.AttemptUpdate(
                worker_id=f"{LONG_ID}{number}", metadata_json='{"a":"%s"}' % ("x" * 5000)
            )
            request = rollout_pb2.UpdateAttemptRequest(
                request_id=f"u{number}", rollout_id=mine.rollout_id, latest=True, update=update
            )
            request.update_mask.paths[:] = ["worker_id", "metadata_json"]
            return request

        def begun(number: int) -> Any:
            new = rollout_pb2.NewRollout(input_json='"%s"' % ("x" * 2000))
            return rollout_pb2.StartRolloutRequest(request_id=f"s{number}", rollout=new, worker_id=f"{LONG_ID}{number}")

        def again(number: int) -> Any:
            return rollout_pb2.StartAttemptRequest(
                request_id=f"a{number}", rollout_id=mine.rollout_id, worker_id=LONG_ID
            )

        made = {
            "StartRollout": flood.until_refused("StartRollout", begun),
            "UpdateAttempt": flood.until_refused("UpdateAttempt", attempt),
            "StartAttempt": flood.until_refused("StartAttempt", again),
            "UpdateWorker": flood.until_refused(
                "UpdateWorker", lambda number: worker_pb2.UpdateWorkerRequest(worker_id=f"{LONG_ID}{number}b")
            ),
        }
        flood.close()
        grown = full.memory() - before
        print(made, f"{grown / MIB:.0f} MiB")
        assert grown < 5 * LIMIT  # the replies to these calls, and messages that were on their way, included
        with pytest.raises(ResourceExhaustedError):
            client.enqueue_rollout("more")
        assert client.update_worker("mine").worker_id == "mine"
        client.update_attempt(mine.rollout_id, "latest", status="succeeded")
        assert mine.rollout_id in client.delete_rollouts(older_than=0)
        unfinished = [one.rollout_id for one in client.query_rollouts(status_in=["preparing"])]
        assert len(client.delete_rollouts(unfinished)) == len(unfinished)
        client.enqueue_rollout("more")


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=long_form)])
def test_workers_that_are_made_up(target: Target, count: int) -> None:
    with Bystander(target) as bystander:
        flood = Flood(target)
        for first in range(0, count, AT_A_TIME):
            requests = [worker_pb2.UpdateWorkerRequest(worker_id=f"made-up-{first + n}") for n in range(AT_A_TIME)]
            assert flood.send("UpdateWorker", requests) == AT_A_TIME
        flood.close()
        with SyncLightningStoreClient(target.endpoint, timeout=120.0) as client:
            made_up = [one.worker_id for one in client.query_workers() if one.worker_id.startswith("made-up-")]
            assert len(client.delete_workers(made_up)) == count
    assert bystander.grown_bytes < 100 * MIB + 3000 * count


@pytest.mark.parametrize(
    ("size_bytes", "limit_bytes"), [(2 * MIB, 16 * MIB), pytest.param(57 * MIB, 512 * MIB, marks=long_form)]
)
def test_large_resources_end_at_the_limit(tmp_path: Path, size_bytes: int, limit_bytes: int) -> None:
    target = start_target("memory:", tmp_path / "log", "--memory-limit", f"{limit_bytes}B")
    try:
        with SyncLightningStoreClient(target.endpoint, retry_delays=()) as client:
            before = target.reset_peak()
            prompt = PromptTemplate(template="x" * size_bytes, engine="f-string")
            taken = 0
            while taken * size_bytes <= 2 * limit_bytes:
                try:
                    client.add_resources({"prompt": prompt})
                except ResourceExhaustedError:
                    break
                taken += 1
            assert limit_bytes // 2 < taken * size_bytes <= limit_bytes * 9 / 8
            # Beside what is stored: one message as it comes, parsed, checked and stored, and the reply to it.
            assert target.memory() - before < limit_bytes * 9 / 8 + 10 * size_bytes + 50 * MIB
            assert client.update_worker("mine").worker_id == "mine"
        assert target.end() == 0
    finally:
        target.kill()


def test_recorded_replies_are_of_a_number_of_calls(tmp_path: Path) -> None:
    entries = 500
    target = start_target("memory:", tmp_path / "log", "--replay-entries-max", str(entries))
    try:
        with Bystander(target) as bystander, SyncLightningStoreClient(target.endpoint) as client:
            mine = client.start_rollout("a task")
            key = span_pb2.AttemptKey(rollout_id=mine.rollout_id, attempt_id=mine.attempt.attempt_id)
            flood = Flood(target)
            for first in range(0, 4 * entries, AT_A_TIME):
                requests = [
                    span_pb2.AllocateSpanSequenceIdsRequest(request_id=f"r{first + n}", keys=[key] * 100)
                    for n in range(AT_A_TIME)
                ]
                assert flood.send("AllocateSpanSequenceIds", requests) == AT_A_TIME
            flood.close()
        assert bystander.grown_bytes < 50 * MIB
        assert target.end() == 0
    finally:
        target.kill()
