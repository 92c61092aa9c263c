"""A server in a process of its own, a well-behaved client beside it, and messages that no client of ours sends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from lightning_store.wire.methods import METHODS
from lightning_store_client import SyncLightningStoreClient

MIB: Final = 1024 * 1024
END_SECONDS_MAX: Final = 15.0
"""The grace, and a busy machine."""
LATENCY_SECONDS_MAX: Final = float(os.environ.get("ATTACK_LATENCY_SECONDS", "5"))
"""What a call of the bystander may take. On a machine that does nothing else it is far less: set 0.25 there."""


@dataclass
class Target:
    """The server that is attacked."""

    process: subprocess.Popen[str]
    endpoint: str
    http_port: int
    log: Path

    def raw(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A connection of its own, whose messages are bytes."""
        unshared = ("grpc.use_local_subchannel_pool", 1)
        return grpc.insecure_channel(self.endpoint, options=(unshared, *options))

    def reset_peak(self) -> int:
        """Count the peak of its memory from now on; its memory now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory("VmRSS")

    def memory(self, name: str = "VmHWM") -> int:
        """Bytes that it has in memory at the most, or another of the numbers that Linux tells."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise LookupError(name)

    def kill(self) -> None:
        """Harmless when it has ended."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self) -> int:
        """Its exit code after SIGTERM; it may not take long."""
        self.process.send_signal(signal.SIGTERM)
        begun = time.perf_counter()
        code = self.process.wait(END_SECONDS_MAX)
        print(f"ended after {time.perf_counter() - begun:.1f} s")
        return code


def start_target(database: str, log: Path, *flags: str) -> Target:
    """A server that keeps its data there."""
    command = [sys.executable, "-m", "lightning_store_server", "serve", "--port", "0", "--http-port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--database", database, *flags], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready, log.read_text()
    endpoint = ready.split(" serving on ")[1].split()[0]
    http_port = int(ready.split("HTTP on ")[1].split(",")[0].rsplit(":", 1)[1])
    return Target(process, endpoint, http_port, log)


def call(channel: grpc.Channel, method: str, request: bytes, timeout: float = 60.0) -> tuple[str, str]:
    """The name of the status that a call ends with, and its message."""
    path = METHODS[method].path if method in METHODS else method
    try:
        channel.unary_unary(path)(request, timeout=timeout)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


# --- Messages --------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def piece(number: int, content: bytes) -> bytes:
    """A field of a message whose content has a length."""
    return varint(number << 3 | 2) + varint(len(content)) + content


# --- The bystander ---------------------------------------------------------------------------------------------------


@dataclass
class Bystander:
    """Uses the store as a runner does while the attack goes on: nothing of it fails, takes long, or is lost."""

    target: Target
    slowest_seconds: float = 0.0
    slowest: str = ""
    rounds: int = 0
    failure: BaseException | None = None
    _kept: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _worked: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Bystander:
        self._client = SyncLightningStoreClient(self.target.endpoint)
        self._client.server_info()
        self._base = self.target.reset_peak()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        grown = self.target.memory() - self._base
        try:
            if kind is None and self.failure is None:
                assert self._lost() == []
        finally:
            self._client.close()
        if kind is not None:
            return
        print(
            f"{self.slowest} took {self.slowest_seconds:.3f} s; {grown / MIB:.0f} MiB at the peak; {self.rounds} rounds"
        )
        assert self.failure is None, self.failure
        assert self.rounds > 0
        assert self.slowest_seconds < LATENCY_SECONDS_MAX
        self.grown_bytes = grown

    def wait_for_rounds(self, count: int) -> None:
        """Return when it has worked for so many more rounds, or has failed."""
        until = self.rounds + count
        while self.rounds < until and self.failure is None:
            self._worked.wait(END_SECONDS_MAX)
            self._worked.clear()

    def stored_bytes(self) -> int:
        """What a store in memory keeps by now; 0 for one in a database."""
        statistics = self._client.statistics()
        return 0 if "disk_used_bytes" in statistics else statistics["total_bytes"]

    def _lost(self) -> Sequence[str]:
        stored = {one.rollout_id: one.status for one in self._client.query_rollouts(rollout_id_in=self._kept)}
        return [one for one in self._kept if stored.get(one) != "succeeded"]

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                self._round()
                self._over.wait(0.01)
        except BaseException as error:
            self.failure = error
            self._worked.set()

    def _round(self) -> None:
        client = self._client
        self._timed(client.update_worker, "bystander")
        started = self._timed(client.start_rollout, "a task", worker_id="bystander")
        attempt_id = started.attempt.attempt_id
        self._timed(client.update_attempt, started.rollout_id, attempt_id, status="succeeded")
        self._kept.append(started.rollout_id)
        self.rounds += 1
        self._worked.set()

    def _timed(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = method(*args, **kwargs)
        seconds = time.perf_counter() - begun
        if seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest = seconds, method.__name__
        return result


long_form = pytest.mark.chaos
