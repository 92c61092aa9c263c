"""What the tests of the command line share: a clean environment, a runner, a served store with something in it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("click", reason="needs the server extra")

from click.testing import CliRunner, Result

from lightning_store import LLM, AttemptedRollout, InMemoryLightningStore, RolloutConfig, Span
from lightning_store.model import Resource, TraceStatus
from lightning_store_server import LightningStoreServer
from lightning_store_server.cli.root import root

Run = Callable[..., Result]


def cli_runner() -> CliRunner:
    """A runner that keeps stdout and stderr apart, which click before 8.2 does only when told to."""
    old = "mix_stderr" in inspect.signature(CliRunner).parameters
    settings: dict[str, Any] = {"mix_stderr": False} if old else {}
    return CliRunner(**settings)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LIGHTNING_STORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Commands configure logging for their whole process."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.captureWarnings(False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def run() -> Run:
    """Run a command line in this process."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return cli_runner().invoke(root, arguments, env=env, catch_exceptions=False)

    return run


class Served:
    """A served store and the ids of what it holds."""

    def __init__(self) -> None:
        self.store = InMemoryLightningStore()
        self.server = LightningStoreServer(self.store, port=0)
        self.retried: AttemptedRollout
        self.waiting_id = ""
        self.resources_id = ""

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    async def start(self) -> None:
        await self.server.start()
        llm = LLM(endpoint="http://llm:8000/v1", model="small", api_key="sk-hidden")
        weights = Resource.model_validate({"resource_type": "weights", "bias": float("nan")})
        self.resources_id = (await self.store.add_resources({"llm": llm, "policy": weights})).resources_id
        config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
        await self.store.enqueue_rollout({"question": "6 * 7\x1b[31m"}, mode="train", config=config)
        first = await self.store.dequeue_rollout(worker_id="runner-1")
        assert first is not None
        await self.store.add_many_spans([span_of(first, 1, None, "first try", status="ERROR")])
        await self.store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="failed")
        second = await self.store.dequeue_rollout(worker_id="runner-1")
        assert second is not None
        await self.store.add_many_spans(
            [
                span_of(second, 2, None, "agent"),
                span_of(second, 3, 2, "chat"),
                span_of(second, 4, 2, "grade", attributes={"agent.reward.value": 0.5, "model": "small"}),
            ]
        )
        await self.store.update_worker("runner-1", {"gpu": float("inf")})
        self.retried = second
        self.waiting_id = (await self.store.enqueue_rollout("a plain text task", mode="val")).rollout_id


def span_of(claimed: AttemptedRollout, number: int, parent: int | None, name: str, **fields: Any) -> Span:
    """Span ``number`` of an attempt; it starts at that second and takes half of one."""
    return Span(
        rollout_id=claimed.rollout_id,
        attempt_id=claimed.attempt.attempt_id,
        sequence_id=number,
        trace_id=f"{1:032x}",
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        name=name,
        status=TraceStatus(status_code=fields.pop("status", "OK")),
        start_time=float(number),
        end_time=number + 0.5,
        **fields,
    )


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    served = Served()
    asyncio.run(served.start())
    yield served
    asyncio.run(served.server.stop())
