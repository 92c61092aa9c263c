"""GrpcLightningStore: a store behind our gRPC server, as one of Agent Lightning's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import agentlightning as agl

from lightning_store.clock import Clock, SystemClock
from lightning_store.errors import (
    CallCancelledError,
    InternalError,
    ResourceExhaustedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from lightning_store_agentlightning import convert
from lightning_store_agentlightning.adapter import AdaptedStore
from lightning_store_client import LightningStoreClient
from lightning_store_client.retry import jittered

logger = logging.getLogger("lightning_store_agentlightning")

TROUBLE: Final = (
    StoreUnavailableError,
    StoreTimeoutError,
    CallCancelledError,
    ResourceExhaustedError,
    InternalError,
)
"""What passes without the caller having done anything wrong."""
BACKOFF_SECONDS: Final = 0.2
BACKOFF_SECONDS_MAX: Final = 5.0


class GrpcLightningStore(AdaptedStore):
    """The store behind the server at ``endpoint``, ``"host:port"``.

    For any thread and event loop, for forked processes, and, by pickle, for spawned ones and other machines: each
    process connects by itself, when it makes its first call.

    A call that no answer can be had for raises ``StoreUnavailableError`` (a ConnectionError) or ``StoreTimeoutError``
    (a TimeoutError) once the client's retries are used up. Asking for work does not: an Agent Lightning runner ends
    with the first exception that comes out of ``dequeue_rollout``, so that one logs it, waits a little, and says that
    there is no work.

    :param dequeue_wait: seconds that asking for work may wait for it. 0, as in Agent Lightning's own stores, leaves it
        to the runner to ask again after its ``poll_interval``. While it waits the runner does not look at its stop
        event, so keep it well below the strategy's ``graceful_timeout``; 1 or 2 do.
    :param otlp_traces_endpoint: see :class:`AdaptedStore`; for a server that runs with ``--otlp-http-port``
    :param clock: for tests
    :param options: those of :class:`lightning_store_client.LightningStoreClient`: ``timeout``, ``retry_delays``,
        ``health_retry_delays``, ``max_message_bytes``, ``token``, ``token_file``, ``tls``, ``tls_client_cert``,
        ``tls_client_key``
    """

    def __init__(
        self,
        endpoint: str,
        *,
        dequeue_wait: float = 0.0,
        otlp_traces_endpoint: str | None = None,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._client = LightningStoreClient(endpoint, clock=self._clock, **options)
        super().__init__(self._client, otlp_traces_endpoint=otlp_traces_endpoint)
        self._dequeue_wait = dequeue_wait
        self._reached = False
        self._pause_seconds = 0.0

    def __repr__(self) -> str:
        return f"GrpcLightningStore({self.endpoint!r})"

    @property
    def endpoint(self) -> str:
        """``host:port`` of the server."""
        return self._client.endpoint

    async def healthy(self) -> bool:
        """Whether the server answers and takes calls."""
        return await self._client.healthy()

    async def close(self) -> None:
        """Close this process's connection; other processes keep theirs."""
        await self._client.close()

    # --- Asking for work ---------------------------------------------------------------------------------------------

    async def dequeue_rollout(self, worker_id: str | None = None) -> agl.AttemptedRollout | None:
        """Claim a rollout; None if there is none, or if the server cannot be asked."""
        claimed = await self.dequeue_many_rollouts(limit=1, worker_id=worker_id)
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None
    ) -> Sequence[agl.AttemptedRollout]:
        """Claim up to ``limit`` rollouts; ``[]`` if there are none, or if the server cannot be asked."""
        try:
            claimed = await self._client.dequeue_many_rollouts(
                limit=limit, worker_id=worker_id, max_wait=self._dequeue_wait
            )
        except TROUBLE as error:
            await self._back_off(error)
            return []
        if self._pause_seconds:
            logger.info("%r: the server answers", self)
        self._reached, self._pause_seconds = True, 0.0
        return [convert.attempted_rollout_to_agl(one) for one in claimed]

    async def _back_off(self, error: Exception) -> None:
        """One warning an outage, or none while the server is still on its way up; and a pause that grows."""
        level = logging.DEBUG if self._pause_seconds else logging.WARNING if self._reached else logging.INFO
        logger.log(level, "%r: no work can be had for now: %s", self, error)
        self._pause_seconds = min(max(BACKOFF_SECONDS, 2 * self._pause_seconds), BACKOFF_SECONDS_MAX)
        await self._clock.sleep(jittered(self._pause_seconds))
