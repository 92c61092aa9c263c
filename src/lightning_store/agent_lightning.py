"""Where Agent Lightning's objects differ from ours, as plain values: for those who speak its REST interfaces, and for
its own program on this store. All other fields have the same names and meanings.

* ``Span.kind`` and ``Span.scope`` are fields here, and there extra fields that can hold anything. What cannot be ours
  is kept in an extra field of another name.
* The versions that an attempt has used are fields here, and there members of its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from lightning_store.labels import RESERVED_PREFIX
from lightning_store.model import InstrumentationScope, SpanKind, SpanKindNumber

OURS_ALONE: Final[Mapping[str, TypeAdapter[Any]]] = {
    "kind": TypeAdapter(SpanKind | SpanKindNumber),
    "scope": TypeAdapter(InstrumentationScope),
}
"""Fields of our spans that are extra fields of Agent Lightning's, if they are there at all."""
STAMPS: Final = ("resources_version", "policy_version", "policy_version_min", "policy_version_max")
"""Fields of our attempts that are members of the metadata of Agent Lightning's, under ``lightning.``."""
KEPT_AS: Final = "agentlightning.{}"
"""Our name for an extra field of theirs whose name is taken here, and whose value does not fit."""


def span_values_to_agl(values: dict[str, Any]) -> None:
    """Turn the fields of one of our spans into those of one of Agent Lightning's, in place."""
    for name in OURS_ALONE:
        if values[name] is None:
            del values[name]
        if KEPT_AS.format(name) in values:
            values[name] = values.pop(KEPT_AS.format(name))


def span_values_from_agl(values: dict[str, Any]) -> None:
    """The reverse: make an extra field of theirs ours if it says the same there, else keep it under another name."""
    for name, adapter in OURS_ALONE.items():
        if name not in values:
            continue
        theirs = values.pop(name)
        try:
            ours = adapter.validate_python(theirs)
            fits = adapter.dump_python(ours) == theirs
        except ValidationError:
            ours, fits = None, False
        values.update({name: ours} if fits else {KEPT_AS.format(name): theirs})


def attempt_metadata_to_agl(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metadata of one of Agent Lightning's attempts, given the fields of one of ours."""
    stamps = {f"{RESERVED_PREFIX}{name}": values[name] for name in STAMPS if values[name] is not None}
    metadata: dict[str, Any] | None = values["metadata"]
    return {**(metadata or {}), **stamps} if stamps else metadata


# --- What a client of the legacy server reports ----------------------------------------------------------------------

LEGACY_REPORT: Final = "agentlightning.legacy_rollout"
"""Member of the metadata of an attempt: the report, but for its trace, …"""
LEGACY_SPAN: Final = "agentlightning.legacy_span"
"""… each span of which is one of ours, with the reported form in this extra field."""
