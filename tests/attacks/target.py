"""A server in a process of its own, a well-behaved client beside it, and messages that no client of ours sends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

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


class Bystander:
    """Uses the store as a runner does while the attack goes on: nothing of it fails, takes long, or is lost."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.rounds = 0
        self.grown_bytes = 0
        """What the server has taken more at the most, once it is over."""
        self._slowest: tuple[float, str] = (0.0, "")
        self._lost: list[str] | None = None
        self._ended = False
        self._told = threading.Condition()

    def __enter__(self) -> Bystander:
        command = [sys.executable, "-m", "tests.attacks.bystander", self.target.endpoint]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._out.readline() == '"ready"\n'
        self._base = self.target.reset_peak()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        grown = self.target.memory() - self._base
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._reader.join()
            code = self._process.wait()
        finally:
            self._process.kill()
            self._process.wait()
            self._out.close()
        if kind is not None:
            return
        seconds, slowest = self._slowest
        print(f"{slowest} took {seconds:.3f} s; {grown / MIB:.0f} MiB at the peak; {self.rounds} rounds")
        assert (code, self._lost) == (0, [])
        assert self.rounds > 0
        assert seconds < LATENCY_SECONDS_MAX
        self.grown_bytes = grown

    @property
    def _out(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def wait_for_rounds(self, count: int) -> None:
        """Return when it has worked for so many more rounds, or has failed."""
        with self._told:
            until = self.rounds + count
            self._told.wait_for(lambda: self.rounds >= until or self._ended, count * END_SECONDS_MAX)

    def stored_bytes(self) -> int:
        """What a store in memory keeps by now; 0 for one in a database."""
        with SyncLightningStoreClient(self.target.endpoint) as client:
            statistics = client.statistics()
        return 0 if "disk_used_bytes" in statistics else statistics["total_bytes"]

    def _read(self) -> None:
        """What it tells, until it ends."""
        for line in self._out:
            told = json.loads(line)
            with self._told:
                if isinstance(told, dict):
                    self._lost = told["lost"]
                else:
                    self.rounds, self._slowest = told[0], (told[1], told[2])
                self._told.notify_all()
        with self._told:
            self._ended = True
            self._told.notify_all()


long_form = pytest.mark.chaos
