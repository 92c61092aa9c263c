"""What a synchronous client has beside the methods that are derived from those of ``LightningStoreClient``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, Self, TypeVar, Unpack, cast

from lightning_store.feeds import close_feed
from lightning_store.model import CompletedRollout, Group, GroupTerms, WatchFilters
from lightning_store.store import LightningStoreCapabilities
from lightning_store_client.blocking import run_blocking
from lightning_store_client.client import LightningStoreClient
from lightning_store_client.sync_worker import SyncWorkerSession
from lightning_store_client.worker import Stats

T = TypeVar("T")

_END: Final = object()


class SyncFeed(Iterator[T]):
    """Completions or groups, one by one. Made by ``watch_rollouts`` and ``watch_groups``."""

    def __init__(self, feed: AsyncIterator[T]) -> None:
        self._feed = feed

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """Wait for the next one.

        Args:
            timeout: How long to wait, in seconds; None without limit.

        Raises:
            TimeoutError: None came in time. The feed goes on.
            StopIteration: The feed has ended.
        """
        item = run_blocking(self._next(), timeout)
        if item is _END:
            raise StopIteration
        return cast(T, item)

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
        **filters: Unpack[WatchFilters],
    ) -> SyncFeed[CompletedRollout]:
        """Follow rollouts as they become terminal: ``for completed in store.watch_rollouts(): …``.

        See :meth:`lightning_store.LightningStore.watch_rollouts`.
        """
        return SyncFeed(self._client.watch_rollouts(rollout_ids, after=after, **filters))

    def watch_groups(self, group_ids: Sequence[str] | None = None, **terms: Unpack[GroupTerms]) -> SyncFeed[Group]:
        """Follow groups as they are done: ``for group in store.watch_groups(): …``.

        See :meth:`lightning_store.LightningStore.watch_groups`.
        """
        return SyncFeed(self._client.watch_groups(group_ids, **terms))

    def worker(self, worker_id: str, *, interval: float = 10.0, stats: Stats | None = None) -> SyncWorkerSession:
        """``with`` it, and this runner sends a heartbeat every ``interval`` seconds, whatever its own thread does, and
        hears when its attempt is called off. What ``stats`` returns goes with each. See :class:`WorkerSession`."""
        return SyncWorkerSession(self._client.worker(worker_id, interval=interval, stats=stats))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        run_blocking(self._client.close())
