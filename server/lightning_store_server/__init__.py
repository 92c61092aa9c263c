"""The server of a LightningStore: gRPC, health, reflection, and the command ``lightning-store-grpc``."""

from __future__ import annotations

from lightning_store_server.config import ServerConfig
from lightning_store_server.handle import LightningStoreServer

__all__ = ["LightningStoreServer", "ServerConfig"]
