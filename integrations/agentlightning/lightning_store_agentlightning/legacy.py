"""LegacyServer: the algorithm's side of Agent Lightning's legacy server, on a store of ours."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import agentlightning as agl
from agentlightning.types import RolloutLegacy

from lightning_store import model
from lightning_store.agent_lightning import LEGACY_REPORT, LEGACY_SPAN
from lightning_store.store import LightningStore
from lightning_store_agentlightning.convert import named_resources_from_agl

ATTEMPTS_MAX: Final = 2**31 - 1
"""A task is handed out again until somebody reports on it."""
WAIT_SECONDS: Final = 20.0
"""How long one wait of a poll takes at most."""


class LegacyServer:
    """Queues tasks for clients of the legacy protocol, and hands out what they report.

    It takes the place of ``agentlightning.server.AgentLightningServer`` in an algorithm. What serves the clients is the
    HTTP side of the store's own server: give ``AgentLightningClient`` its address. A task is a rollout, so that clients
    of every other interface may take it too.

    :param store: any store of ours: in this process, or a client of a server
    :param task_timeout_seconds: a task on which nobody has reported for so long after it was taken is handed out again
    """

    def __init__(self, store: LightningStore, task_timeout_seconds: float = 300.0) -> None:
        if not 0 < task_timeout_seconds < math.inf:
            raise ValueError(f"task_timeout_seconds is {task_timeout_seconds}; give more than 0")
        self._store = store
        self._config = model.RolloutConfig(
            timeout_seconds=task_timeout_seconds, max_attempts=ATTEMPTS_MAX, retry_condition=["timeout"]
        )
        self._waiting: dict[str, None] = {}
        """Ids of the tasks that were queued here and not retrieved, in order."""

    async def queue_task(
        self,
        sample: Any,
        mode: Literal["train", "val", "test"] | None = None,
        resources_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Add a task to the queue. The id of its rollout."""
        queued = await self._store.enqueue_rollout(
            sample, mode=mode, resources_id=resources_id, config=self._config, metadata=metadata
        )
        self._waiting[queued.rollout_id] = None
        return queued.rollout_id

    async def update_resources(self, resources: Mapping[str, agl.Resource]) -> str:
        """Publish resources. Their id."""
        return (await self._store.add_resources(named_resources_from_agl(resources))).resources_id

    async def get_completed_rollout(self, rollout_id: str) -> RolloutLegacy | None:
        """What was reported of a task, once; None before that, and after."""
        return await self.poll_completed_rollout(rollout_id, 0.0)

    async def poll_completed_rollout(self, rollout_id: str, timeout: float | None = None) -> RolloutLegacy | None:
        """The same, after waiting for it for up to ``timeout`` seconds, or for ever; None if that is over."""
        until = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while rollout_id in self._waiting:
            left = WAIT_SECONDS if until is None else until - asyncio.get_running_loop().time()
            ended = await self._store.wait_for_rollouts(
                rollout_ids=[rollout_id], timeout=max(0.0, min(left, WAIT_SECONDS))
            )
            if ended:
                return await self._retrieve(rollout_id)
            if left <= 0:
                break
        return None

    async def retrieve_completed_rollouts(self) -> list[RolloutLegacy]:
        """What was reported of all tasks since the last call."""
        ended = await self._store.wait_for_rollouts(rollout_ids=list(self._waiting), timeout=0.0)
        found = [await self._retrieve(one.rollout_id) for one in ended]
        return [one for one in found if one is not None]

    async def _retrieve(self, rollout_id: str) -> RolloutLegacy | None:
        rollout = await self._store.get_rollout_by_id(rollout_id)
        spans = await self._store.query_spans(rollout_id, "latest")
        if rollout_id not in self._waiting:  # somebody else has retrieved it meanwhile
            return None
        del self._waiting[rollout_id]
        metadata = (rollout.attempt.metadata or {}) if isinstance(rollout, model.AttemptedRollout) else {}
        report = metadata.get(LEGACY_REPORT)
        if report is None:  # it was ended through another interface
            return RolloutLegacy(rollout_id=rollout_id, metadata=metadata)
        trace = [
            span.model_extra[LEGACY_SPAN] for span in spans if span.model_extra and LEGACY_SPAN in span.model_extra
        ]
        return RolloutLegacy.model_validate({"trace": trace, **report})
