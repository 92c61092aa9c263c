"""``python -m lightning_store_server``: the command ``lightning-store-grpc``."""

from __future__ import annotations

from lightning_store_server.cli import main

if __name__ == "__main__":
    main()
