"""What a peer of the HTTP side may take of the server."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_store_server.config import MIB


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Exporters and scrapers give up after 10 s, as a rule."""

    connections: int = 1000
    held_bytes: int = 512 * MIB
    """Of all the bodies that are coming in. What is over either limit is told to come back."""
    head_bytes: int = 16 * 1024
    idle_seconds: float = 60.0
    """A connection on which nothing comes is closed, …"""
    head_seconds: float = 10.0
    """… and so is one on which a request's head does not end, …"""
    body_seconds: float = 30.0
    """… or its body, …"""
    write_seconds: float = 10.0
    """… or that does not take its answer."""
    linger_seconds: float = 2.0
    """How long the rest of a refused request is taken and dropped, so that the answer is not lost with it."""
