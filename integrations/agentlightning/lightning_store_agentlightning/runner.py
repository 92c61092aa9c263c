"""CancellableLitAgentRunner: a runner whose agent stops when its rollout is called off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

import agentlightning as agl
from agentlightning.types import RolloutRawResult

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS: Final = 10.0
"""How often a runner looks whether another attempt has taken the place of its own. Of an end it hears at once."""


class CalledOffError(Exception):
    """The rollout was cancelled or deleted, or another attempt of it has begun, while the agent was at work."""


class CancellableLitAgentRunner(agl.LitAgentRunner[T]):
    """A ``LitAgentRunner`` that cancels the rollout of an asynchronous agent when it is called off: when the rollout is
    cancelled or deleted, or another attempt has taken the place of this one.

    The agent gets ``asyncio.CancelledError`` at its next await. What it comes to is not reported, and the runner goes
    on with its next rollout. An agent that is not asynchronous cannot be interrupted: it works to its end.

    Args:
        args: Those of ``LitAgentRunner``.
        options: Likewise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._called_off: set[tuple[str, str]] = set()
        """Rollout id and attempt id of what is not to be reported."""

    def get_agent(self) -> agl.LitAgent[T]:
        """The agent; its rollouts end when they are called off."""
        return cast(agl.LitAgent[T], _CancellableAgent(super().get_agent(), self._run))

    def get_store(self) -> agl.LightningStore:
        """The store; reports of attempts that were called off do not reach it."""
        return cast(agl.LightningStore, _Reports(super().get_store(), self._called_off))

    async def _run(self, work: Awaitable[RolloutRawResult], rollout: agl.AttemptedRollout) -> RolloutRawResult:
        """What ``work`` returns. CalledOffError if the rollout is called off before that."""
        scope = asyncio.timeout(None)
        watching = asyncio.create_task(self._watch(rollout, scope))
        try:
            async with scope:
                return await work
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        self._called_off.add((rollout.rollout_id, rollout.attempt.attempt_id))
        raise CalledOffError(f"attempt {rollout.attempt.attempt_id} of rollout {rollout.rollout_id} was called off")

    async def _watch(self, rollout: agl.AttemptedRollout, scope: asyncio.Timeout) -> None:
        """End ``scope`` when the rollout is called off."""
        store = super().get_store()
        while True:
            try:
                ended = await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=LOOK_SECONDS)
                if await _is_called_off(store, rollout):
                    return scope.reschedule(asyncio.get_running_loop().time())
                if ended:  # as failed, of which a late success may make something else
                    await asyncio.sleep(LOOK_SECONDS)
            except Exception as error:
                logger.debug("rollout %s: watching fails, and goes on: %s", rollout.rollout_id, error)
                await asyncio.sleep(LOOK_SECONDS)


async def _is_called_off(store: agl.LightningStore, rollout: agl.AttemptedRollout) -> bool:
    found = await store.get_rollout_by_id(rollout.rollout_id)
    latest = await store.get_latest_attempt(rollout.rollout_id)
    if found is None or found.status == "cancelled" or latest is None:
        return True
    return latest.attempt_id != rollout.attempt.attempt_id


class _Instead:
    """Stands for another object, and does some things otherwise."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    @property
    def __class__(self) -> type:  # so that isinstance sees what it stands for
        return type(self._of)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise AttributeError("the class of an object that stands for another cannot be set")


class _CancellableAgent(_Instead):
    """An agent for hooks and for the runner."""

    def __init__(self, agent: agl.LitAgent[Any], run: Callable[..., Awaitable[RolloutRawResult]]) -> None:
        super().__init__(agent)
        self._run = run

    async def training_rollout_async(
        self, task: Any, resources: agl.NamedResources, rollout: agl.AttemptedRollout
    ) -> RolloutRawResult:
        return await self._run(self._of.training_rollout_async(task, resources, rollout), rollout)

    async def validation_rollout_async(
        self, task: Any, resources: agl.NamedResources, rollout: agl.AttemptedRollout
    ) -> RolloutRawResult:
        return await self._run(self._of.validation_rollout_async(task, resources, rollout), rollout)


class _Reports(_Instead):
    """A store for the runner: an attempt that was called off gets no outcome of it, which might queue it again."""

    def __init__(self, store: agl.LightningStore, called_off: set[tuple[str, str]]) -> None:
        super().__init__(store)
        self._called_off = called_off

    async def update_attempt(self, rollout_id: str, attempt_id: str, *args: Any, **fields: Any) -> agl.Attempt | None:
        if (rollout_id, attempt_id) not in self._called_off:
            return cast(agl.Attempt, await self._of.update_attempt(rollout_id, attempt_id, *args, **fields))
        self._called_off.discard((rollout_id, attempt_id))
        return cast(agl.Attempt | None, await self._of.get_latest_attempt(rollout_id))
