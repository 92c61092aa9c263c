"""InProcessLightningStore: our store in this process's memory, as one of Agent Lightning's."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning_store import InMemoryLightningStore
from lightning_store_agentlightning.adapter import AdaptedStore


class InProcessLightningStore(AdaptedStore):
    """Lives and dies with the process; for all its threads and event loops.

    ``options`` are those of :class:`lightning_store.InMemoryLightningStore`. It cannot be sent to another process: use
    a :class:`~lightning_store_agentlightning.GrpcLightningStore` there.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(InMemoryLightningStore(**options))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an InProcessLightningStore cannot be pickled, its data is in this process alone; serve it "
            "(GrpcExecutionStrategy, or lightning-store-grpc serve) and give other processes a GrpcLightningStore"
        )
