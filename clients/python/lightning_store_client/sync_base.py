"""What a synchronous client has beside the methods that are derived from those of ``LightningStoreClient``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, Self, Unpack, cast

from lightning_store.model import CompletedRollout, RolloutFilters
from lightning_store.rollout_feed import close_feed
from lightning_store.store import LightningStoreCapabilities
from lightning_store_client.blocking import run_blocking
from lightning_store_client.client import LightningStoreClient
from lightning_store_client.sync_worker import SyncWorkerSession
from lightning_store_client.worker import Stats

_END: Final = object()


class SyncRolloutFeed(Iterator[CompletedRollout]):
    """Completions, one by one. Made by ``SyncLightningStoreClient.watch_rollouts``."""

    def __init__(self, feed: AsyncIterator[CompletedRollout]) -> None:
        self._feed = feed

    def __next__(self) -> CompletedRollout:
        return self.next()

    def next(self, timeout: float | None = None) -> CompletedRollout:
        """Wait for the next completion.

        Args:
            timeout: How long to wait, in seconds; None without limit.

        Raises:
            TimeoutError: None came in time. The feed goes on.
            StopIteration: The feed has ended.
        """
        completed = run_blocking(self._next(), timeout)
        if completed is _END:
            raise StopIteration
        return cast(CompletedRollout, completed)

    async def _next(self) -> object:
        return await anext(self._feed, _END)

    def close(self) -> None:
        """Read no further."""
        run_blocking(close_feed(self._feed))


class SyncClientBase:
    """Has the calls of an asynchronous client made in the background thread of the process."""

    def __init__(self, client: LightningStoreClient) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint!r})"

    @property
    def client(self) -> LightningStoreClient:
        """The client that makes the calls, with the same connection: for code that awaits, and for span processors."""
        return self._client

    @property
    def endpoint(self) -> str:
        return self._client.endpoint

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self._client.capabilities

    def watch_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        after: str | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> SyncRolloutFeed:
        """Follow rollouts as they become terminal: ``for completed in store.watch_rollouts(): …``.

        See :meth:`lightning_store.LightningStore.watch_rollouts`.
        """
        return SyncRolloutFeed(self._client.watch_rollouts(rollout_ids, after=after, **filters))

    def worker(self, worker_id: str, *, interval: float = 10.0, stats: Stats | None = None) -> SyncWorkerSession:
        """``with`` it, and this runner sends a heartbeat every ``interval`` seconds, whatever its own thread does, and
        hears when its attempt is called off. What ``stats`` returns goes with each. See :class:`WorkerSession`."""
        return SyncWorkerSession(self._client.worker(worker_id, interval=interval, stats=stats))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        run_blocking(self._client.close())
