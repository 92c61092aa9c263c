"""Idempotency keys: how a batch of rollouts is queued once, whoever asks and however late.

The ids of the rollouts follow from the key, so the store finds them by their ids and keeps nothing else of the key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

from lightning_store.backends.records import NewRollout


def keyed_ids(key: str, count: int) -> list[str]:
    """The ids of the rollouts that are queued under this key, in order."""
    prefix = _digest(key.encode(), 12)
    return [f"ro-{prefix}-{index}" for index in range(count)]


def fingerprint_of(requests: Sequence[NewRollout]) -> str:
    """Tells this batch from any other. The order of the members of a JSON object makes no difference."""
    batch = [
        (
            json.loads(one.input_json),
            json.loads(one.metadata_json),
            one.mode,
            one.resources_id,
            one.priority,
            one.config.model_dump(mode="json", exclude_defaults=True),
            *(() if one.group_id is None else (one.group_id, one.group_size)),
        )
        for one in requests
    ]
    return _digest(json.dumps(batch, sort_keys=True).encode(), 16)


def _digest(data: bytes, size_bytes: int) -> str:
    return blake2b(data, digest_size=size_bytes).hexdigest()
