"""How ``serve`` ends, with a server that behaves as each case needs."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import ClassVar

import pytest

from lightning_store import LightningStore
from lightning_store_server import ServerConfig, app
from lightning_store_server.cli import serve as serve_module
from lightning_store_server.cli.serve import ready_line


class FakeServer:
    """Gets a SIGTERM as soon as it has started; ``stop`` does what the case says."""

    config: ClassVar[ServerConfig]
    started: ClassVar[BaseException | None] = None
    """What ``start`` raises."""
    signals_while_stopping: ClassVar[int] = 0
    finished: ClassVar[bool] = True
    keeps_freed_memory: ClassVar[bool] = False

    def __init__(self, store: LightningStore, config: ServerConfig) -> None:
        type(self).config = config
        self.bound_port = 4242
        self.bound_http_port = config.http_port

    async def start(self) -> None:
        if self.started is not None:
            raise self.started
        os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self) -> bool:
        if self.signals_while_stopping:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        return self.finished


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    class Fake(FakeServer):
        pass

    monkeypatch.setattr(serve_module, "GrpcServer", Fake)
    monkeypatch.setattr(serve_module, "keep_freed_memory", lambda: setattr(Fake, "keeps_freed_memory", True))
    return Fake


def test_signal_drains_and_ends_with_0(run, server) -> None:
    result = run(
        "serve", "--host", "0.0.0.0", "--insecure", "--strict", "--wait-max", "7", "--access-log", "--keepalive", "9"
    )
    assert result.exit_code == 0
    [line] = result.stdout.splitlines()
    assert line.startswith("lightning-store-grpc serving on 0.0.0.0:4242 (memory store, strict, version ")
    assert "SIGTERM: draining; calls under way have 10 s" in result.stderr
    assert server.keeps_freed_memory
    assert server.config == ServerConfig(
        host="0.0.0.0", insecure=True, wait_seconds_max=7.0, access_log=True, keepalive_seconds=9.0
    )


def test_the_ready_line_tells_where_otlp_is_taken(run, server) -> None:
    result = run("serve", "--host", "::1", "--otlp-http-port", "4318")
    assert "(memory store, HTTP on [::1]:4318, version " in result.stdout
    assert server.config == ServerConfig(host="::1", http_port=4318)


def test_one_port_for_both_ends_with_78(run, server) -> None:
    result = run("serve", "--port", "4318", "--otlp-http-port", "4318")
    assert result.exit_code == 78
    assert "port and http_port are both 4318" in result.stderr


def test_calls_that_outlast_the_grace_end_with_75(run, server) -> None:
    server.finished = False
    result = run("serve", "--grace", "0.25")
    assert result.exit_code == 75
    assert "calls did not finish within 0.25 s" in result.stderr


def test_second_signal_ends_at_once_with_75(run, server, monkeypatch) -> None:
    class EndedError(BaseException):
        pass

    def end(code: int) -> None:
        raise EndedError(code)

    server.signals_while_stopping = 1
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    with pytest.raises(EndedError, match="75"):
        run("serve", "--grace", "1000")


def test_taken_port_ends_with_69(run, server) -> None:
    server.started = OSError(98, "cannot listen on 127.0.0.1:4747")
    result = run("serve")
    assert result.exit_code == 69
    assert (result.stdout, "cannot listen on 127.0.0.1:4747" in result.stderr) == ("", True)


def test_internal_failure_ends_with_70(run, server) -> None:
    server.started = ZeroDivisionError("by nothing")
    result = run("serve")
    assert result.exit_code == 70
    assert "ZeroDivisionError: by nothing" in result.stderr


def test_contradicting_settings_end_with_78(run, server) -> None:
    result = run("serve", "--eviction-memory-threshold", "1GiB", "--safe-memory-threshold", "2GiB")
    assert result.exit_code == 78
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)
    assert "safe_memory_threshold" in result.stderr


def test_thresholds_reach_the_store(run, server, monkeypatch) -> None:
    given = {}
    make = app.memory_store

    def memory_store(**arguments):
        given.update(arguments)
        return make(**arguments)

    monkeypatch.setattr(serve_module, "memory_store", memory_store)
    result = run(
        "serve",
        *("--eviction-memory-threshold", "0.5", "--safe-memory-threshold", "1000B", "--memory-limit", "8GiB"),
        *("--replay-window", "60", "--replay-entries-max", "10", "--worker-timeout", "7", "--retain-workers", "0"),
        *("--final-outcomes", "--fence-attempts", "refuse"),
        *("--drop-spans", "openai.embeddings, http.GET,", "--retain-for", "trainer"),
    )
    assert result.exit_code == 0
    assert given == {
        "strict": False,
        "final_outcomes": True,
        "fence_attempts": "refuse",
        "worker_timeout_seconds": 7.0,
        "worker_retention_seconds": None,
        "eviction_memory_threshold": 0.5,
        "safe_memory_threshold": 1000,
        "memory_limit": 8 * 1024**3,
        "retain_finished_seconds": None,
        "retain_finished_count": None,
        "retain_for": ("trainer",),
        "drop_spans": ("openai.embeddings", "http.GET"),
        "replay_window_seconds": 60.0,
        "replay_entries_max": 10,
    }


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("10000", {"retain_finished_count": 10_000}),
        ("3600s", {"retain_finished_seconds": 3600}),
        ("12h", {"retain_finished_seconds": 43_200}),
    ],
)
@pytest.mark.parametrize("by_variable", [True, False])
def test_what_is_kept_reaches_the_store(run, server, monkeypatch, value, kept, by_variable) -> None:
    given = {}
    make = app.memory_store

    def memory_store(**arguments):
        given.update(arguments)
        return make(**arguments)

    monkeypatch.setattr(serve_module, "memory_store", memory_store)
    if by_variable:
        result = run("serve", env={"LIGHTNING_STORE_RETAIN_FINISHED": value, "LIGHTNING_STORE_MEMORY_LIMIT": "0.5"})
    else:
        result = run("serve", "--retain-finished", value, "--memory-limit", "0.5")
    assert result.exit_code == 0
    wanted = {"retain_finished_count": None, "retain_finished_seconds": None, "memory_limit": 0.5} | kept
    assert {name: given[name] for name in wanted} == wanted


def test_limits_reach_the_server(run, server) -> None:
    result = run(
        "serve",
        *("--calls-max", "1", "--waits-max", "2", "--stream-queries-max", "3", "--queued-bytes-max", "4GiB"),
        env={"LIGHTNING_STORE_READ_AHEAD_BYTES": "64KiB"},
    )
    assert result.exit_code == 0
    assert server.config == ServerConfig(
        calls_max=1, waits_max=2, stream_queries_max=3, queued_bytes_max=4 * 1024**3, read_ahead_bytes=64 * 1024
    )


def test_ready_line_of_a_socket() -> None:
    assert ready_line("/run/store.sock", None, "memory store").startswith(
        "lightning-store-grpc serving on unix:///run/store.sock ("
    )


def test_ready_line_brackets_ipv6() -> None:
    assert ready_line("::1", 4747, "memory store").startswith("lightning-store-grpc serving on [::1]:4747 (")
