"""The contract of Backend as tests, in parts by what a backend does; ``BackendContract`` is all of them."""

from __future__ import annotations

from lightning_store.testing.contract.backend.counting import CountsContract, EvictionContract
from lightning_store.testing.contract.backend.groups import GroupContract, RequestIdsOfGroupsContract
from lightning_store.testing.contract.backend.isolation import (
    CancellationContract,
    IsolationContract,
    RollbackContract,
)
from lightning_store.testing.contract.backend.loading import (
    ClaimingContract,
    DueContract,
    LoadingContract,
    NotLoadedContract,
)
from lightning_store.testing.contract.backend.reading import ListsContract, SnapshotContract
from lightning_store.testing.contract.backend.storing import PositionsContract, StoringContract
from lightning_store.testing.contract.backend.training import TrainingContract


class BackendContract(
    LoadingContract,
    NotLoadedContract,
    ClaimingContract,
    DueContract,
    StoringContract,
    PositionsContract,
    CountsContract,
    EvictionContract,
    SnapshotContract,
    ListsContract,
    TrainingContract,
    RollbackContract,
    IsolationContract,
    CancellationContract,
    GroupContract,
    RequestIdsOfGroupsContract,
):
    """What ``lightning_store.backends.base`` says of a backend, to be run on any::

        class TestMyBackend(BackendContract):
            async def open_backend(self, clock, **options):
                backend = MyBackend(**options)
                yield backend
                await backend.close()

    A backend that departs from one on purpose says so, with the reason, in ``deviations``; those tests are skipped and
    the reason shows in the report.
    """


__all__ = ["BackendContract"]
