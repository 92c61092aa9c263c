"""Whatever is stored again and again ends at the limit of memory, and can be reported on and deleted there."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_store import ResourceExhaustedError
from lightning_store.v1 import rollout_pb2, worker_pb2
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest, SessionResponse
from lightning_store_client import SyncLightningStoreClient
from lightning_store_server.sessions import PATH
from tests.attacks.target import MIB, Target, start_target

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
