"""The stores that a worker process drives, one way to open each.

All of them are used through the methods of ``LightningStore``; what differs is the classes that these take and return.
Agent Lightning is imported by name and only where it is the side, so that the harness runs without it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from lightning_store import EnqueueRolloutRequest, LightningStore, Span

Family = Literal["lightning_store", "agentlightning"]
"""Which library's classes a side speaks."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The classes of arguments of one library; the fields that the benchmarks set are the same in both."""

    span: type[Span]
    enqueue_request: type[EnqueueRolloutRequest]


def dialect(family: Family) -> Dialect:
    """The classes to build arguments from."""
    module: Any = importlib.import_module(family)
    return Dialect(span=module.Span, enqueue_request=module.EnqueueRolloutRequest)


def open_store(family: Family, endpoint: str | None) -> LightningStore:
    """A client of the server at ``endpoint`` (``host:port``), or without one a new store in this process."""
    module = importlib.import_module(_MODULES[family, endpoint is not None])
    store: LightningStore
    if endpoint is None:
        store = module.InMemoryLightningStore()
    else:
        store = module.LightningStoreClient(endpoint if family == "lightning_store" else f"http://{endpoint}")
    return store


_MODULES: Final[dict[tuple[Family, bool], str]] = {
    ("lightning_store", True): "lightning_store_client",
    ("lightning_store", False): "lightning_store",
    ("agentlightning", True): "agentlightning.store.client_server",
    ("agentlightning", False): "agentlightning.store.memory",
}


async def close_store(store: LightningStore) -> None:
    """Close a client's connections; a store in process has none."""
    close = getattr(store, "close", None)
    if close is not None:
        await close()
