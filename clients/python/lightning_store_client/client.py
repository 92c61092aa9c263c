"""LightningStoreClient: a LightningStore whose data is on a server."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar, Unpack

from lightning_store import arguments, otel
from lightning_store.clock import Clock, SystemClock
from lightning_store.errors import (
    InternalError,
    InvalidArgumentError,
    StoreError,
)
from lightning_store.feeds import GroupFeed, RolloutFeed
from lightning_store.items import ITEMS_MAX, parts
from lightning_store.model import (
    UNSET,
    Admission,
    AdmissionState,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    AttemptUpdate,
    CompletedRollout,
    EnqueueRolloutRequest,
    Group,
    GroupTerms,
    LazyRows,
    PaginatedResult,
    Resource,
    ResourcesUpdate,
    ReturnWhen,
    Rollout,
    RolloutConfig,
    RolloutFilters,
    RolloutMode,
    RolloutStatus,
    RolloutUpdate,
    Span,
    Unset,
    WatchFilters,
    Worker,
    given,
)
from lightning_store.outcomes import add_legal, stored_of
from lightning_store.queries import (
    AttemptQuery,
    GroupQuery,
    Query,
    ResourcesQuery,
    RolloutQuery,
    SpanBatchQuery,
    SpanQuery,
    WorkerQuery,
    cancelled_where,
    rollout_filters,
)
from lightning_store.query_methods import QueryMethods
from lightning_store.reserved import IDEMPOTENCY_KEY
from lightning_store.spans.document import encode
from lightning_store.store import LightningStoreCapabilities, LightningStoreStatistics
from lightning_store.v1 import resources_pb2, rollout_pb2, server_pb2, span_pb2, transfer_pb2, worker_pb2
from lightning_store.v1.query_pb2 import StreamQueryRequest
from lightning_store.v1.service_pb2_grpc import LightningStoreServiceStub
from lightning_store.wire import codec, queries, requests, selections, spans
from lightning_store.wire.codec import ServerInfo
from lightning_store_client.batcher import BATCHED_BYTES_MAX, Batcher
from lightning_store_client.calls import HEALTH_TIMEOUT_SECONDS, Calls, new_request_id
from lightning_store_client.channel import MAX_MESSAGE_BYTES, Connector
from lightning_store_client.credentials import Credentials
from lightning_store_client.endpoint import checked_endpoint
from lightning_store_client.retry import RetryPolicy
from lightning_store_client.rounds import Rounds
from lightning_store_client.span_buffer import SpanBuffer
from lightning_store_client.span_sending import SpanSender
from lightning_store_client.worker import Stats, WorkerSession

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

T = TypeVar("T")

logger = logging.getLogger("lightning_store_client")

WAIT_SECONDS_MAX = 20.0
"""What one call asks the server to wait; a longer wait is several calls."""
TOLD_MAX: Final = ITEMS_MAX
"""Groups of which a feed tells a server anew that they have come. Older ones that come again are passed over here."""


class _Listing(NamedTuple):
    """How one kind of query goes over the wire."""

    rpc: str | None
    """The List method; None where there is none."""
    kind: str
    """The field of StreamQueryRequest."""
    rows: str
    """The field of the replies."""
    to_proto: Callable[[Any], Any]
    read: Callable[[Any, str], Any]
    """One row."""


_LISTINGS: Final[Mapping[type[Query[Any]], _Listing]] = {
    RolloutQuery: _Listing(
        "ListRollouts", "rollouts", "rollouts", queries.list_rollouts_to_proto, codec.rollout_from_proto
    ),
    AttemptQuery: _Listing(
        "ListAttempts", "attempts", "attempts", queries.list_attempts_to_proto, codec.attempt_from_proto
    ),
    SpanQuery: _Listing("ListSpans", "spans", "spans", queries.list_spans_to_proto, spans.span_from_proto),
    SpanBatchQuery: _Listing(None, "span_batch", "spans", queries.span_batch_to_proto, spans.span_from_proto),
    ResourcesQuery: _Listing(
        "ListResources", "resources", "resources", queries.list_resources_to_proto, codec.resources_from_proto
    ),
    WorkerQuery: _Listing("ListWorkers", "workers", "workers", queries.list_workers_to_proto, codec.worker_from_proto),
}


class LightningStoreClient(QueryMethods):
    """Speaks to the server at ``endpoint``, ``"host:port"``.

    Usable from any thread and event loop, and in processes that are forked from this one or get it by pickle: each
    process connects by itself, when it makes its first call. A call raises what the store behind the server raises,
    ``StoreUnavailableError`` (a ConnectionError) if no answer can be had, and ``StoreTimeoutError`` (a TimeoutError)
    if none came in time.

    Every call is tried again after a lost connection, and happens once all the same: the server recognises it.

    :param timeout: seconds that one call may take, all its attempts together. What ``max_wait`` or
        ``wait_for_rollouts`` asks to wait comes on top; ``update_worker`` takes 10 at most. Each batch of
        ``add_many_spans`` has so long, and so has each message of a query whose rows do not fit into one: these may
        take 300 seconds together, or ``timeout`` if that is more
    :param retry_delays: seconds before the second attempt, the third, …; empty for no retries
    :param health_retry_delays: seconds between probes of the server's health before each further attempt
    :param max_message_bytes: the largest request to send; the server has a limit of its own
    :param token: what the server knows the caller by; None takes ``LIGHTNING_STORE_TOKEN``. Without TLS it can be read
        on its way
    :param token_file: a file that holds the token; None takes ``LIGHTNING_STORE_TOKEN_FILE``
    :param tls: True to speak TLS with a server whose certificate an authority issued that gRPC knows, or the path of a
        PEM file with the authorities to trust; None takes ``LIGHTNING_STORE_TLS_CA``, or ``LIGHTNING_STORE_TLS=1``
    :param tls_client_cert: PEM file with the client's own certificate, for a server that asks for one; None takes
        ``LIGHTNING_STORE_TLS_CLIENT_CERT``
    :param tls_client_key: that with its key; None takes ``LIGHTNING_STORE_TLS_CLIENT_KEY``

    The files are looked at once a second, while calls are made; when one has changed, the next call connects anew.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout: float = 30.0,
        retry_delays: Sequence[float] = (1.0, 2.0, 5.0),
        health_retry_delays: Sequence[float] = (0.1, 0.2, 0.5),
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        token: str | None = None,
        token_file: str | None = None,
        tls: bool | str | None = None,
        tls_client_cert: str | None = None,
        tls_client_key: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.endpoint = checked_endpoint(endpoint)
        self._clock: Clock = clock if clock is not None else SystemClock()
        credentials = Credentials(token, token_file, tls, tls_client_cert, tls_client_key)
        self._connector = Connector(endpoint, credentials, clock)
        if max_message_bytes <= 0:
            message = f"max_message_bytes is {max_message_bytes}; give more than 0"
            raise InvalidArgumentError(message, field="max_message_bytes")
        policy = RetryPolicy.of(timeout, retry_delays, health_retry_delays)
        self._calls = Calls(self._connector, policy, self._clock, max_message_bytes)
        self._beats = Rounds(self._clock)
        """Of the heartbeats of this client's workers."""
        self._listening = Rounds(self._clock)
        """Of the calls by which they hear of the end of rollouts."""
        self._enqueueing = Batcher(partial(_enqueue, self._calls), self._calls.is_idle)
        self._spans = SpanSender(self._calls, max_message_bytes)
        self.span_buffer = SpanBuffer(self._spans, self._clock)
        """What ``LightningStoreSpanProcessor`` has still to store."""
        self._numbering = Batcher(partial(_allocate, self._calls), self._calls.is_idle)

    def __repr__(self) -> str:
        return f"LightningStoreClient({self.endpoint!r})"

    # --- The connection ----------------------------------------------------------------------------------------------

    @property
    def stub(self) -> LightningStoreServiceStub:
        """The generated stub, for calls without retries, conversions or any other help. Synchronous."""
        return self._connector.get().stub

    async def healthy(self, *, timeout: float = HEALTH_TIMEOUT_SECONDS) -> bool:
        """Whether a store answers within ``timeout`` seconds and takes calls. One probe, no retry."""
        return await self._calls.is_healthy(arguments.wait_seconds("timeout", timeout))

    async def server_info(self) -> ServerInfo:
        """The server's version, mode, capabilities and limits."""
        return codec.server_info_from_proto(await self._calls.unary("GetServerInfo", server_pb2.GetServerInfoRequest()))

    def worker(self, worker_id: str, *, interval: float = 10.0, stats: Stats | None = None) -> WorkerSession:
        """``async with`` it, and this runner sends a heartbeat every ``interval`` seconds, also while its event loop is
        blocked, and hears when its attempt is called off. What ``stats`` returns goes with each heartbeat. See
        :class:`WorkerSession`."""
        return WorkerSession(self, self._calls, self._beats, self._listening, worker_id, interval, stats)

    async def close(self) -> None:
        """Close this process's connection, when the spans of its span processors are stored. Calls that are under way
        end; later ones are a RuntimeError."""
        try:
            await self.flush_spans()
        except StoreError as error:
            logger.error("spans are lost, since the client is closed: %s", error)
        finally:
            self._connector.close()

    async def __aenter__(self) -> LightningStoreClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- About the store ---------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {"thread_safe": True, "async_safe": True, "zero_copy": True, "otlp_traces": False}

    async def statistics(self) -> LightningStoreStatistics:
        reply = await self._calls.unary("GetStatistics", server_pb2.GetStatisticsRequest())
        return {**codec.statistics_from_proto(reply), "name": type(self).__name__}

    # --- The queue ---------------------------------------------------------------------------------------------------

    async def start_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        request = rollout_pb2.StartRolloutRequest(
            request_id=new_request_id(),
            rollout=_new_rollout(input, mode, resources_id, config, metadata),
            worker_id=arguments.worker_name(worker_id),
        )
        reply = await self._calls.unary("StartRollout", request)
        return codec.attempted_rollout_from_proto(reply.rollout, "rollout")

    async def enqueue_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        group_id: str | None = None,
        group_size: int | None = None,
    ) -> Rollout:
        new = _new_rollout(input, mode, resources_id, config, metadata, priority, group_id, group_size)
        # Rollouts of one call that have the same key are a batch, which those of several callers are not.
        if new.ByteSize() > BATCHED_BYTES_MAX or IDEMPOTENCY_KEY in new.metadata_json:
            [queued] = await _enqueue(self._calls, [new])
        else:
            queued = await self._enqueueing.call(new)
        return codec.rollout_from_proto(queued, "rollouts")

    async def enqueue_many_rollouts(
        self, rollouts: Sequence[EnqueueRolloutRequest], *, idempotency_key: str | None = None
    ) -> Sequence[Rollout]:
        arguments.check_optional_id("idempotency_key", idempotency_key)
        checked = arguments.checked_requests(rollouts)
        new = [codec.new_rollout_to_proto(request, f"rollouts[{i}].") for i, request in enumerate(checked)]
        # A batch under a key is one request: whoever asks again finds all of it, or none.
        some = parts(new) if idempotency_key is None else [new]
        queued = [one for part in some for one in await _enqueue(self._calls, part, idempotency_key)]
        return [codec.rollout_from_proto(one, "rollouts") for one in queued]

    async def dequeue_rollout(self, worker_id: str | None = None, *, max_wait: float = 0.0) -> AttemptedRollout | None:
        claimed = await self.dequeue_many_rollouts(limit=1, worker_id=worker_id, max_wait=max_wait)
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None, max_wait: float = 0.0
    ) -> Sequence[AttemptedRollout]:
        max_wait = arguments.wait_seconds("max_wait", max_wait)
        if limit <= 0:
            return []
        worker_id = arguments.worker_name(worker_id)
        until = self._clock.monotonic() + max_wait
        while True:
            left = max(0.0, until - self._clock.monotonic())
            wait = min(left, WAIT_SECONDS_MAX)
            request = requests.dequeue_to_proto(new_request_id(), limit, worker_id, wait)
            reply = await self._calls.unary("DequeueRollouts", request, wait_seconds=wait)
            if reply.rollouts or self._clock.monotonic() >= until:
                return [codec.attempted_rollout_from_proto(one, "rollouts") for one in reply.rollouts]

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        arguments.check_id("rollout_id", rollout_id)
        worker_id = arguments.worker_name(worker_id)
        request = rollout_pb2.StartAttemptRequest(
            request_id=new_request_id(), rollout_id=rollout_id, worker_id=worker_id
        )
        reply = await self._calls.unary("StartAttempt", request)
        return codec.attempted_rollout_from_proto(reply.rollout, "rollout")

    # --- Spans -------------------------------------------------------------------------------------------------------

    async def add_span(self, span: Span) -> Span | None:
        [span] = arguments.checked_spans([span])
        return None if await self._spans.add(encode(span)) is None else span

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Sent in batches of some 4 MiB, one after the other; see ``LightningStore.add_many_spans``.

        When the store refuses a batch, because its memory is full say, the spans of the batches before are stored:
        ``SpansRejectedError`` lists them as stored, and all the others with the error. If nothing was stored, the
        error is raised itself. After ``StoreUnavailableError``, ``StoreTimeoutError``, ``InternalError`` or a
        cancellation some of the spans may be stored; add all of them again, and each is stored once. What is returned
        then is what was not stored before.
        """
        spans = arguments.checked_spans(spans)
        return stored_of(spans, await add_legal([self._spans.encoded(span) for span in spans], self._spans.add_many))

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        otel.check_finished(readable_span)
        converted = Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        record = encode(converted)
        stored = await self._spans.add(record if sequence_id is not None else record._replace(sequence_id=None))
        if stored is None:
            return None
        converted.sequence_id = stored
        return converted

    async def flush_spans(self) -> None:
        """Return when all spans that have ended under a ``LightningStoreSpanProcessor`` of this client are stored.

        Those that the store refuses are logged.

        Raises:
            StoreUnavailableError: The store cannot be reached. The spans are kept, and sent again.
        """
        await self.span_buffer.flush()

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        arguments.check_id("rollout_id", rollout_id)
        arguments.check_id("attempt_id", attempt_id)
        return await self._numbering.call((rollout_id, attempt_id))

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        keys = list(rollout_attempt_ids)
        for rollout_id, attempt_id in keys:
            arguments.check_id("rollout_id", rollout_id)
            arguments.check_id("attempt_id", attempt_id)
        return [number for part in parts(keys) for number in await _allocate(self._calls, part)]

    # --- Queries -----------------------------------------------------------------------------------------------------

    async def run_query(self, query: Query[T]) -> PaginatedResult[T]:
        """All rows of a query, taken at one moment: in one reply, or streamed if one cannot hold them."""
        listing = _LISTINGS[type(query)]
        request = listing.to_proto(query)
        pages = [] if listing.rpc is None else [await self._calls.unary(listing.rpc, request)]
        if not pages or pages[0].next_page_token:
            pages = await self._calls.stream("StreamQuery", StreamQueryRequest(**{listing.kind: request}))
            if not pages:
                raise InternalError("StreamQuery: the server's answer ended before its first message")
        messages = [row for page in pages for row in getattr(page, listing.rows)[:]]
        rows = LazyRows(messages, lambda message: listing.read(message, listing.rows))
        return PaginatedResult(rows, query.limit, query.offset, pages[0].total)

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        arguments.check_id("rollout_id", rollout_id)
        reply = await self._calls.unary("GetRollout", rollout_pb2.GetRolloutRequest(rollout_id=rollout_id))
        return codec.rollout_from_proto(reply.rollout, "rollout") if reply.HasField("rollout") else None

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        arguments.check_id("rollout_id", rollout_id)
        reply = await self._calls.unary("GetLatestAttempt", rollout_pb2.GetLatestAttemptRequest(rollout_id=rollout_id))
        return codec.attempt_from_proto(reply.attempt, "attempt") if reply.HasField("attempt") else None

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        arguments.check_id("resources_id", resources_id)
        reply = await self._calls.unary("GetResources", resources_pb2.GetResourcesRequest(resources_id=resources_id))
        return codec.resources_from_proto(reply.resources, "resources") if reply.HasField("resources") else None

    async def get_latest_resources(self, *, run: str | None = None) -> ResourcesUpdate | None:
        arguments.check_optional_id("run", run)
        reply = await self._calls.unary("GetLatestResources", resources_pb2.GetLatestResourcesRequest(run=run))
        return codec.resources_from_proto(reply.resources, "resources") if reply.HasField("resources") else None

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        arguments.check_id("worker_id", worker_id)
        reply = await self._calls.unary("GetWorker", worker_pb2.GetWorkerRequest(worker_id=worker_id))
        return codec.worker_from_proto(reply.worker, "worker") if reply.HasField("worker") else None

    # --- Resources ---------------------------------------------------------------------------------------------------

    async def add_resources(
        self, resources: Mapping[str, Resource], *, policy_version: int | None = None, run: str | None = None
    ) -> ResourcesUpdate:
        return await self._publish("AddResources", resources, policy_version, run)

    async def update_resources(
        self,
        resources_id: str,
        resources: Mapping[str, Resource],
        *,
        policy_version: int | None = None,
        run: str | None = None,
    ) -> ResourcesUpdate:
        arguments.check_id("resources_id", resources_id)
        return await self._publish("UpdateResources", resources, policy_version, run, resources_id=resources_id)

    async def _publish(
        self,
        rpc: str,
        named: Mapping[str, Resource],
        policy_version: int | None,
        run: str | None,
        **ids: str,
    ) -> ResourcesUpdate:
        arguments.check_policy_version(policy_version)
        arguments.check_optional_id("run", run)
        request_type = resources_pb2.UpdateResourcesRequest if ids else resources_pb2.AddResourcesRequest
        request = request_type(
            request_id=new_request_id(),
            resources_json=codec.named_resources_to_proto(arguments.named_resources(named)),
            policy_version=policy_version,
            run=run,
            **ids,
        )
        return codec.resources_from_proto((await self._calls.unary(rpc, request)).resources, "resources")

    # --- Updates -----------------------------------------------------------------------------------------------------

    async def update_rollout(
        self,
        rollout_id: str,
        input: Any | Unset = UNSET,
        mode: RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
    ) -> Rollout:
        update = RolloutUpdate(
            **given(input=input, mode=mode, resources_id=resources_id, status=status, config=config, metadata=metadata)
        )
        request = requests.update_rollout_to_proto(new_request_id(), rollout_id, update)
        return codec.rollout_from_proto((await self._calls.unary("UpdateRollout", request)).rollout, "rollout")

    async def cancel_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> list[Rollout]:
        where = cancelled_where(rollout_ids, status_in, filters)
        if rollout_ids is not None and not len(rollout_ids):
            return []
        cancelled = await self._in_parts(
            "CancelRollouts",
            rollout_ids,
            lambda part: selections.cancellation_to_proto(new_request_id(), part, where),
            attrgetter("rollouts"),
        )
        return [codec.rollout_from_proto(one, "rollouts") for one in cancelled]

    async def requeue_rollouts(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        arguments.distinct_ids(rollout_ids)
        requeued = await self._in_parts(
            "RequeueRollouts",
            rollout_ids,
            lambda part: rollout_pb2.RequeueRolloutsRequest(request_id=new_request_id(), rollout_ids=part),
            attrgetter("rollouts"),
        )
        return [codec.rollout_from_proto(one, "rollouts") for one in requeued]

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | None | Unset = UNSET,
        last_heartbeat_time: float | None | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
        *,
        counts: bool | Unset = UNSET,
    ) -> Attempt:
        fields = given(
            status=status,
            worker_id=worker_id,
            last_heartbeat_time=last_heartbeat_time,
            metadata=metadata,
            counts=counts,
        )
        update = AttemptUpdate(**fields)
        await self.flush_spans()
        request = requests.update_attempt_to_proto(new_request_id(), rollout_id, attempt_id, update)
        return codec.attempt_from_proto((await self._calls.unary("UpdateAttempt", request)).attempt, "attempt")

    async def update_worker(self, worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset = UNSET) -> Worker:
        arguments.check_heartbeat(worker_id, heartbeat_stats)
        request = requests.update_worker_to_proto(worker_id, heartbeat_stats)
        return codec.worker_from_proto((await self._calls.unary("UpdateWorker", request)).worker, "worker")

    # --- Waiting -----------------------------------------------------------------------------------------------------

    async def wait_for_rollouts(
        self, rollout_ids: Sequence[str], *, timeout: float | None = None, return_when: ReturnWhen = "all"
    ) -> list[Rollout]:
        distinct = list(arguments.distinct_ids(rollout_ids))
        some = [distinct] if arguments.is_any(return_when) else parts(distinct)
        until = None if timeout is None else self._clock.monotonic() + arguments.wait_seconds("timeout", timeout)
        ended: dict[str, Rollout] = {}
        for part in some if distinct else ():
            ended |= await self._wait_for(part, until, return_when)
        return [ended[rollout_id] for rollout_id in rollout_ids if rollout_id in ended]

    async def _wait_for(
        self, rollout_ids: Sequence[str], until: float | None, return_when: ReturnWhen
    ) -> dict[str, Rollout]:
        while True:
            left = math.inf if until is None else max(0.0, until - self._clock.monotonic())
            seconds = min(left, WAIT_SECONDS_MAX)
            will_ask_again = left > seconds
            request = requests.wait_to_proto(rollout_ids, seconds, return_when, omit_unless_complete=will_ask_again)
            reply = await self._calls.unary("WaitForRollouts", request, wait_seconds=seconds)
            if reply.complete or (until is not None and not will_ask_again and self._clock.monotonic() >= until):
                return await self._all_ended(reply)

    async def _all_ended(self, reply: rollout_pb2.WaitForRolloutsResponse) -> dict[str, Rollout]:
        """The rollouts of a reply and those that it left out for their size, by id."""
        ended: dict[str, Rollout] = {}
        while True:
            ended |= {one.rollout_id: codec.rollout_from_proto(one, "rollouts") for one in reply.rollouts}
            if not reply.omitted_rollout_ids:
                return ended
            reply = await self._calls.unary("WaitForRollouts", requests.wait_to_proto(reply.omitted_rollout_ids, 0.0))

    def watch_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        after: str | None = None,
        **filters: Unpack[WatchFilters],
    ) -> AsyncIterator[CompletedRollout]:
        """Goes on by itself after a lost connection; see ``LightningStore.watch_rollouts``.

        ``StoreUnavailableError`` when no connection can be had for as long as a call is retried: the feed may be read
        on later all the same.
        """
        return RolloutFeed(partial(self._completions, filters), rollout_ids, after)

    async def _completions(
        self, filters: WatchFilters, rollout_ids: list[str] | None, after: str | None
    ) -> AsyncGenerator[Any, None]:
        where, consumer = RolloutQuery(**rollout_filters(filters)), filters.get("consumer")
        wanted = None if rollout_ids is None else dict.fromkeys(rollout_ids)
        cursor = "" if after is None else after
        async with aclosing(
            self._calls.follow("WatchRollouts", lambda: selections.watch_to_proto(wanted, cursor, where, consumer))
        ) as replies:
            async for reply in replies:
                if reply.cursor:
                    cursor = reply.cursor
                    yield cursor
                for message in reply.completions:
                    completed = selections.completed_from_proto(message, "completions")
                    cursor = completed.cursor
                    if wanted is not None:
                        wanted.pop(completed.rollout.rollout_id, None)  # so that it is not asked for again
                    yield completed
                if reply.complete:
                    return

    def watch_groups(self, group_ids: Sequence[str] | None = None, **terms: Unpack[GroupTerms]) -> AsyncIterator[Group]:
        """Goes on by itself after a lost connection, as ``watch_rollouts`` does."""
        return GroupFeed(partial(self._groups, GroupQuery(**terms)), group_ids)

    async def _groups(self, terms: GroupQuery, group_ids: list[str] | None) -> AsyncGenerator[Group, None]:
        wanted = None if group_ids is None else dict.fromkeys(group_ids)
        told: dict[str, None] = {}
        until = None if terms.timeout is None else self._clock.monotonic() + terms.timeout

        def request() -> rollout_pb2.WatchGroupsRequest:
            left = None if until is None else max(0.0, until - self._clock.monotonic())
            newest = list(islice(reversed(told), TOLD_MAX))
            return selections.watch_groups_to_proto(wanted, replace(terms, timeout=left), newest)

        async with aclosing(self._calls.follow("WatchGroups", request)) as replies:
            async for reply in replies:
                for message in reply.groups:
                    group = selections.group_from_proto(message, "groups")
                    if wanted is not None:
                        wanted.pop(group.group_id, None)  # so that it is not asked for again
                    elif group.group_id in told:  # longer ago than a request can say
                        continue
                    else:
                        told[group.group_id] = None
                    yield group
                if reply.complete:
                    return

    # --- Consuming ---------------------------------------------------------------------------------------------------

    async def mark_consumed(
        self, consumer: str, rollout_ids: Sequence[str], *, checkpoint: str | None = None
    ) -> list[str]:
        arguments.check_id("consumer", consumer)
        arguments.check_optional_id("checkpoint", checkpoint)
        some = parts(list(arguments.distinct_ids(rollout_ids)))
        requests = [
            rollout_pb2.MarkConsumedRequest(request_id=new_request_id(), consumer=consumer, rollout_ids=ids)
            for ids in some
        ]
        if checkpoint is not None:
            requests[-1].checkpoint = checkpoint
        replies = [await self._calls.unary("MarkConsumed", request) for request in requests]
        return [rollout_id for reply in replies for rollout_id in reply.rollout_ids]

    async def rewind_consumer(self, consumer: str, *, checkpoint: str | None = None) -> list[str]:
        arguments.check_id("consumer", consumer)
        arguments.check_optional_id("checkpoint", checkpoint)
        request = rollout_pb2.RewindConsumerRequest(
            request_id=new_request_id(), consumer=consumer, checkpoint=checkpoint
        )
        return list((await self._calls.unary("RewindConsumer", request)).rollout_ids)

    async def set_admission(self, run: str, *, max_open_groups: int | None = None, paused: bool = False) -> Admission:
        arguments.check_admission(run, max_open_groups, paused)
        request = rollout_pb2.SetAdmissionRequest(
            request_id=new_request_id(), run=run, max_open_groups=max_open_groups, paused=paused
        )
        return selections.admission_from_proto((await self._calls.unary("SetAdmission", request)).admission)

    async def get_admission(self, run: str) -> AdmissionState:
        arguments.check_id("run", run)
        request = rollout_pb2.GetAdmissionRequest(run=run)
        return selections.admission_state_from_proto(await self._calls.unary("GetAdmission", request))

    async def query_admissions(self) -> list[Admission]:
        reply = await self._calls.unary("ListAdmissions", rollout_pb2.ListAdmissionsRequest())
        return list(map(selections.admission_from_proto, reply.admissions))

    # --- Deleting ----------------------------------------------------------------------------------------------------

    async def delete_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        older_than: float | None = None,
        status_in: Sequence[RolloutStatus] | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> list[str]:
        arguments.check_deletion(rollout_ids, older_than, status_in)

        def request(part: Sequence[str] | None) -> rollout_pb2.DeleteRolloutsRequest:
            which = selections.Deletion(rollout_ids=part, older_than=older_than, status_in=status_in)
            return selections.deletion_to_proto(new_request_id(), which, RolloutQuery(**filters))

        return await self._in_parts("DeleteRollouts", rollout_ids, request, attrgetter("rollout_ids"))

    async def delete_workers(self, worker_ids: Sequence[str]) -> list[str]:
        return await self._in_parts(
            "DeleteWorkers",
            arguments.distinct_ids(worker_ids, "worker_ids"),
            lambda part: worker_pb2.DeleteWorkersRequest(request_id=new_request_id(), worker_ids=part),
            attrgetter("worker_ids"),
        )

    async def delete_resources(self, resources_ids: Sequence[str]) -> list[str]:
        return await self._in_parts(
            "DeleteResources",
            arguments.distinct_ids(resources_ids, "resources_ids"),
            lambda part: resources_pb2.DeleteResourcesRequest(request_id=new_request_id(), resources_ids=part),
            attrgetter("resources_ids"),
        )

    async def _in_parts(
        self,
        rpc: str,
        ids: Iterable[str] | None,
        request: Callable[[Sequence[str] | None], Any],
        rows: Callable[[Any], Iterable[Any]],
    ) -> list[Any]:
        """Make a call for as many ids at a time as one request may have; for None, one without ids.

        Args:
            rpc: The method.
            ids: What the call is about.
            request: The request for some of the ids.
            rows: What of a reply is returned, from all replies in order.
        """
        found: list[Any] = []
        for part in [None] if ids is None else parts(list(ids)):
            found += rows(await self._calls.unary(rpc, request(part)))
        return found

    async def release_worker(self, worker_id: str) -> Worker | None:
        arguments.check_id("worker_id", worker_id)
        request = worker_pb2.ReleaseWorkerRequest(worker_id=worker_id)
        reply = await self._calls.unary("ReleaseWorker", request)
        return codec.worker_from_proto(reply.worker, "worker") if reply.HasField("worker") else None

    # --- Between stores ----------------------------------------------------------------------------------------------

    async def export_pages(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> AsyncGenerator[transfer_pb2.ExportRolloutsResponse, None]:
        """Rollouts with all that belongs to them, in the order in which they were made, for ``import_stored``.

        Args:
            status_in: Only rollouts with one of these statuses.
            filters: Only rollouts for which these hold; see :class:`RolloutFilters`.

        Returns:
            The replies of the server, one after the other. Each is of one moment.

        Raises:
            UnsupportedError: The store behind the server does not offer it.
        """
        which = RolloutQuery(status_in=status_in, **filters)
        page_token = ""
        while True:
            page = await self._calls.unary("ExportRollouts", selections.exported_to_proto(which, page_token))
            yield page
            page_token = page.next_page_token
            if not page_token:
                return

    async def import_stored(
        self,
        rollouts: Sequence[transfer_pb2.StoredRollout] = (),
        *,
        resources: Sequence[resources_pb2.Resources] = (),
        workers: Sequence[worker_pb2.Worker] = (),
        checkpoints: Sequence[transfer_pb2.Checkpoint] = (),
        admissions: Sequence[rollout_pb2.Admission] = (),
    ) -> transfer_pb2.ImportRolloutsResponse:
        """Store what another store holds as it is; what is stored stays as it is.

        Args:
            rollouts: Rollouts, or parts of them, in the order in which they count as made.
            resources: Present versions of resources.
            workers: Workers.
            checkpoints: Checkpoints of consumers, before the rollouts that these have consumed.
            admissions: Bounds of runs.

        Returns:
            How many of each were stored, and how many were stored before.

        Raises:
            InvalidArgumentError: Something is malformed. Nothing was stored.
            UnsupportedError: The store behind the server does not offer it.
        """
        request = transfer_pb2.ImportRolloutsRequest(
            request_id=new_request_id(),
            rollouts=rollouts,
            resources=resources,
            workers=workers,
            checkpoints=checkpoints,
            admissions=admissions,
        )
        reply: transfer_pb2.ImportRolloutsResponse = await self._calls.unary("ImportRollouts", request)
        return reply


async def _enqueue(
    calls: Calls, rollouts: Sequence[rollout_pb2.NewRollout], idempotency_key: str | None = None
) -> Sequence[rollout_pb2.Rollout]:
    request = rollout_pb2.EnqueueRolloutsRequest(
        request_id=new_request_id(), rollouts=rollouts, idempotency_key=idempotency_key
    )
    queued: Sequence[rollout_pb2.Rollout] = (await calls.unary("EnqueueRollouts", request)).rollouts
    return queued


async def _allocate(calls: Calls, rollout_attempt_ids: Sequence[tuple[str, str]]) -> list[int]:
    keys = [span_pb2.AttemptKey(rollout_id=rollout_id, attempt_id=id_) for rollout_id, id_ in rollout_attempt_ids]
    request = span_pb2.AllocateSpanSequenceIdsRequest(request_id=new_request_id(), keys=keys)
    return list((await calls.unary("AllocateSpanSequenceIds", request)).sequence_ids)


def _new_rollout(
    input: Any,
    mode: RolloutMode | None,
    resources_id: str | None,
    config: RolloutConfig | None,
    metadata: Mapping[str, Any] | None,
    *more: Any,
) -> rollout_pb2.NewRollout:
    request = arguments.rollout_request(input, mode, resources_id, config, metadata, *more)
    return codec.new_rollout_to_proto(request)
