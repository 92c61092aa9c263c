"""InProcessLightningStore: our store in this process, in memory or in a database, as one of Agent Lightning's."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning_store import InMemoryLightningStore, SqliteLightningStore
from lightning_store.arguments import database_path
from lightning_store_agentlightning.adapter import AdaptedStore


class InProcessLightningStore(AdaptedStore):
    """For all threads and event loops of this process. It cannot be sent to another process: use a
    :class:`~lightning_store_agentlightning.GrpcLightningStore` there.

    Args:
        database: ``"memory:"``, where the data ends with the process, or ``"sqlite:PATH"``, where it survives.
        options: Those of :class:`lightning_store.InMemoryLightningStore`, or those of
            :class:`lightning_store.SqliteLightningStore`.

    Raises:
        InvalidArgumentError: An argument is not legal, or the file is damaged.
        UnsupportedError: A newer version of the program has written the file.
        StoreUnavailableError: The file is in use already, or cannot be written.
    """

    def __init__(self, database: str = "memory:", **options: Any) -> None:
        path = database_path(database)
        self._database = None if path is None else SqliteLightningStore(path, **options)
        super().__init__(InMemoryLightningStore(**options) if self._database is None else self._database)

    def close(self) -> None:
        """Close the database, if there is one. May be called more than once; a process that ends without it loses
        nothing that a call has returned for."""
        if self._database is not None:
            self._database.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an InProcessLightningStore cannot be pickled, its data is in this process alone; serve it "
            "(GrpcExecutionStrategy, or lightning-store-grpc serve) and give other processes a GrpcLightningStore"
        )
