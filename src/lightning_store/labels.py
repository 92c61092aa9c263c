"""Members of metadata that rollouts are looked up by: those whose keys begin with ``lightning.`` have an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

RESERVED_PREFIX: Final = "lightning."
LABEL_CHARS_MAX: Final = 512
"""A longer one is not in the index: rollouts are searched for it."""


def member_text(value: Any) -> str:
    """The JSON text of a value, the same for equal values. 1, 1.0 and true are not equal."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def label_of(key: str, text: str) -> str | None:
    """The index entry of a member with this JSON text; None if it has none."""
    label = f"{key}={text}"
    if not key.startswith(RESERVED_PREFIX) or len(label) > LABEL_CHARS_MAX or text[0] in "[{":
        return None
    return label if label.isascii() or not any("\ud800" <= one <= "\udfff" for one in label) else None


def may_have_labels(metadata_json: str) -> bool:
    """Whether this metadata may have a key that begins with ``lightning.``: a quick look."""
    return RESERVED_PREFIX in metadata_json or "\\" in metadata_json


def labels_of(metadata_json: str | None) -> Sequence[str]:
    """The index entries of a rollout with this metadata."""
    if metadata_json is None or not may_have_labels(metadata_json):
        return ()
    metadata = json.loads(metadata_json)
    labels = (label_of(key, member_text(value)) for key, value in metadata.items() if key.startswith(RESERVED_PREFIX))
    return [label for label in labels if label is not None]


def has_members(metadata_json: str | None, members: Sequence[tuple[str, str]]) -> bool:
    """Whether the metadata has all of these members: pairs of a key and a JSON text."""
    if metadata_json is None:
        return False
    metadata: Mapping[str, Any] = json.loads(metadata_json)
    return all(key in metadata and member_text(metadata[key]) == text for key, text in members)
