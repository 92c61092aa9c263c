"""What the page changes, and who may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lightning_store.errors import InvalidArgumentError
from lightning_store.store import LightningStore
from lightning_store.wire.methods import METHODS, Role
from lightning_store_server.access import audit


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is done to rollouts."""

    name: str
    title: str
    warning: str
    """What is to be known before it is done."""
    method: str
    """The RPC that does the same, whose role counts."""
    call: Callable[[LightningStore, Sequence[str]], Awaitable[Any]]

    @property
    def role(self) -> Role:
        """The least role of those who may."""
        return METHODS[self.method].role

    async def run(self, store: LightningStore, rollout_ids: Sequence[str]) -> None:
        """Do it. InvalidArgumentError if no rollout is named."""
        if not rollout_ids:
            raise InvalidArgumentError("no rollout is chosen; go back and choose some", field="id")
        await self.call(store, rollout_ids)
        audit(f"did from the page: {self.name}", rollout_ids)


ACTIONS: Final = {
    one.name: one
    for one in (
        Action(
            "cancel",
            "Cancel",
            "Rollouts that have not ended become cancelled, and their runners are told with the next heartbeat. Those "
            "that have ended stay as they are.",
            "CancelRollouts",
            lambda store, ids: store.cancel_rollouts(ids),
        ),
        Action(
            "requeue",
            "Requeue",
            "Rollouts that have ended go back to the tail of the queue and get one attempt more. The others stay as "
            "they are.",
            "RequeueRollouts",
            lambda store, ids: store.requeue_rollouts(ids),
        ),
        Action(
            "delete",
            "Delete",
            "Rollouts are deleted with their attempts and spans. This cannot be undone.",
            "DeleteRollouts",
            lambda store, ids: store.delete_rollouts(ids),
        ),
    )
}
