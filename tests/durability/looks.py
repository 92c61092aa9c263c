"""What a store shows, to be compared with what it showed before."""

from __future__ import annotations

from typing import Any

from lightning_store import LightningStore


async def everything(store: LightningStore) -> dict[str, Any]:
    """All that a store shows."""
    rollouts = list(await store.query_rollouts())
    return {
        "rollouts": rollouts,
        "attempts": [list(await store.query_attempts(one.rollout_id)) for one in rollouts],
        "spans": [list(await store.query_spans(one.rollout_id)) for one in rollouts],
        "resources": list(await store.query_resources()),
        "latest": await store.get_latest_resources(),
        "workers": list(await store.query_workers()),
        "totals": {name: value for name, value in (await store.statistics()).items() if name.startswith("total_")},
    }
