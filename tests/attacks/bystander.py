"""A well-behaved client in a process of its own, so that what its calls take is not what the attack takes here.

It uses the store as a runner does until its standard input ends, and writes a line for each round: how many there were,
and the slowest call so far. The last line has what was lost of all that was acknowledged.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning_store_client import SyncLightningStoreClient


class Runner:
    def __init__(self, client: SyncLightningStoreClient) -> None:
        self._client = client
        self._kept: list[str] = []
        self.slowest: tuple[float, str] = (0.0, "")

    def round(self) -> int:
        """How many there were by now."""
        client = self._client
        self._timed(client.update_worker, "bystander")
        started = self._timed(client.start_rollout, "a task", worker_id="bystander")
        attempt_id = started.attempt.attempt_id
        self._timed(client.update_attempt, started.rollout_id, attempt_id, status="succeeded")
        self._kept.append(started.rollout_id)
        return len(self._kept)

    def lost(self) -> Sequence[str]:
        found = self._client.query_rollouts(rollout_id_in=self._kept) if self._kept else ()
        stored = {one.rollout_id: one.status for one in found}
        return [one for one in self._kept if stored.get(one) != "succeeded"]

    def _timed(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = method(*args, **kwargs)
        self.slowest = max(self.slowest, (time.perf_counter() - begun, method.__name__))
        return result


def tell(value: Any) -> None:
    print(json.dumps(value), flush=True)


def main(endpoint: str) -> None:
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with SyncLightningStoreClient(endpoint) as client:
        client.server_info()
        tell("ready")
        runner = Runner(client)
        while not over.is_set():
            tell([runner.round(), *runner.slowest])
            over.wait(0.01)
        tell({"lost": runner.lost()})


if __name__ == "__main__":
    main(sys.argv[1])
