"""The server of a LightningStore: gRPC, health, reflection, and the command ``lightning-store-grpc``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_store_server.config import ServerConfig

if TYPE_CHECKING:
    from lightning_store_server.handle import LightningStoreServer

__all__ = ["LightningStoreServer", "ServerConfig"]


def __getattr__(name: str) -> Any:
    """Import the server when it is asked for: the command line must be able to come before gRPC."""
    if name == "LightningStoreServer":
        from lightning_store_server.handle import LightningStoreServer

        return LightningStoreServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
