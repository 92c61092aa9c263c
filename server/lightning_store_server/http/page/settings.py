"""Settings of a server as the page shows them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from lightning_store_server.config import ServerConfig
from lightning_store_server.text import byte_size, duration

HIDDEN: Final = frozenset({"tls_key"})
"""Where the key is, nobody on the network needs to know."""


def limits_of(config: ServerConfig) -> list[tuple[str, str, bool]]:
    """Each setting: its name, its value with its unit, and whether it differs from the default."""
    default = ServerConfig()
    return [
        (one.name, _shown(one.name, getattr(config, one.name)), getattr(config, one.name) != getattr(default, one.name))
        for one in fields(config)
        if one.name not in HIDDEN
    ]


def _shown(name: str, value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") or "_bytes_" in name:
        return byte_size(value)
    if name.endswith("_seconds") or "_seconds_" in name:
        return duration(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
