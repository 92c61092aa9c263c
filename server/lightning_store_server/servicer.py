"""Each RPC as one call of the store. Nothing is decided here: the store has the rules, ``wire`` the conversions."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, aclosing
from importlib.metadata import version
from typing import Any, TypeVar

from google.protobuf.message import Message

from lightning_store.arguments import check_policy_version
from lightning_store.backends.records import ResourcesRecord, SpanRecord
from lightning_store.engine.idempotency import request_scope
from lightning_store.engine.operations import (
    EnqueueRollouts,
    PublishResources,
    StartAttempt,
    StartRollout,
    UpdateAttempt,
    UpdateRollout,
)
from lightning_store.engine.transfer import Place
from lightning_store.errors import InvalidArgumentError, StoreError, StoreUnavailableError
from lightning_store.feeds import NOW, begun_feed
from lightning_store.masking import masked
from lightning_store.model import AttemptedRollout, CompletedRollout, Group, Rollout, Worker
from lightning_store.outcomes import add_legal
from lightning_store.store import LightningStore
from lightning_store.v1 import resources_pb2 as resources
from lightning_store.v1 import rollout_pb2 as rollout
from lightning_store.v1 import server_pb2 as server
from lightning_store.v1 import service_pb2_grpc
from lightning_store.v1 import span_pb2 as span
from lightning_store.v1 import transfer_pb2 as transfer
from lightning_store.v1 import worker_pb2 as worker
from lightning_store.v1.query_pb2 import StreamQueryRequest, StreamQueryResponse
from lightning_store.wire import codec, enums, queries, records, requests, selections, spans
from lightning_store.wire import transfer as transfers
from lightning_store.wire.checks import bounded_text, require, required_text
from lightning_store.wire.errors import write_span_outcome
from lightning_store.wire.frames import with_rows
from lightning_store.wire.methods import ACCEPTED_METADATA, METHODS, REPEATED_METADATA, Method
from lightning_store_server.access import audit, caller_now
from lightning_store_server.config import ServerConfig
from lightning_store_server.feeds import FeedRuns
from lightning_store_server.interceptors import Context, seconds_left
from lightning_store_server.otlp.rejections import Rejections
from lightning_store_server.pages import Listing, PageLimits, all_pages, batches, first_page, stream_rows
from lightning_store_server.record_store import records_of
from lightning_store_server.slices import HEAVY_BYTES, FairGate, HeavyThread, in_slices

T = TypeVar("T")
M = TypeVar("M", bound=Message)

REQUEST_ID_CHARS_MAX = 128
REPLY_MARGIN_SECONDS = 0.5
"""A wait ends this long before its caller's deadline, or half way to it, so that the answer arrives in time."""
CLAIMS_MAX = 1000
"""Rollouts of one DequeueRollouts: a step that takes long holds up every other call."""


SINGLE_READS_MAX = 4
"""Rollouts and resources that are read at once: each may be as large as a message."""
SCANS_MAX = 4
"""Queries that look for their rows at once; the others wait for their turn, and hold nothing until then."""


class StoreServicer(service_pb2_grpc.LightningStoreServiceServicer):
    """Serves ``store``, which must be safe to call from the server's event loop."""

    def __init__(self, store: LightningStore, config: ServerConfig) -> None:
        self._store = store
        self._records = records_of(store)
        self._config = config
        self._single_reads = FairGate(SINGLE_READS_MAX)
        self._scans = FairGate(SCANS_MAX)
        self._limits = PageLimits(config.page_rows_max, config.page_bytes_max)
        self._rollouts = Listing(
            "rollouts",
            rollout.ListRolloutsResponse,
            queries.list_rollouts_from_proto,
            self._records.query_rollouts,
            records.RowsEncoder().encode,
        )
        self._attempts = Listing(
            "attempts",
            rollout.ListAttemptsResponse,
            queries.list_attempts_from_proto,
            lambda query: store.query_attempts(**query.arguments()),
            lambda row: codec.attempt_to_proto(row).SerializeToString(),
        )
        self._span_rows = Listing(
            "spans",
            span.ListSpansResponse,
            queries.list_spans_from_proto,
            self._records.query_spans,
            lambda record: spans.span_record_to_proto(record).SerializeToString(),
        )
        self._span_batches = Listing(
            "spans",
            StreamQueryResponse,
            queries.span_batch_from_proto,
            self._records.query_many_spans,
            self._span_rows.encode,
        )
        self._resources = Listing(
            "resources",
            resources.ListResourcesResponse,
            queries.list_resources_from_proto,
            lambda query: store.query_resources(**query.arguments()),
            lambda row: _shown(codec.resources_to_proto(row)).SerializeToString(),
        )
        self._workers = Listing(
            "workers",
            worker.ListWorkersResponse,
            queries.list_workers_from_proto,
            lambda query: store.query_workers(**query.arguments()),
            lambda row: codec.worker_to_proto(row).SerializeToString(),
        )
        self.rejections = Rejections()
        """Of spans that come over OTLP."""
        self.heavy = HeavyThread()
        self.otlp_http_port: int | None = None
        """Where the server takes OTLP over HTTP; it is known once that is bound."""
        self._waits: set[asyncio.Task[Any] | FeedRuns[Any]] = set()
        self._draining = False

    async def _once(self, request: Any, context: Context) -> AbstractContextManager[None]:
        """The scope of a call that its caller may send twice; InvalidArgumentError if it came without a request id."""
        _check_request_id(request)
        repeated = REPEATED_METADATA in (context.invocation_metadata() or ())
        caller = caller_now()
        owner = "" if caller is None else caller.name
        asked = _asked(request)
        fingerprint = await self.heavy.convert(_hash, asked, len(asked))
        return request_scope(request.request_id, fingerprint, repeated=repeated, owner=owner)

    async def _read(self, request: M, read: Callable[[M], T]) -> T:
        """Read a request that may have one large payload."""
        return await self.heavy.convert(read, request, request.ByteSize())

    async def _read_all(self, request: Message, read: Callable[[int, M], T], items: Sequence[M]) -> list[T]:
        """Read many items of a request, with other calls in between."""
        if request.ByteSize() <= HEAVY_BYTES:
            return await in_slices(read, items)
        return await self.heavy.run(lambda: list(map(read, range(len(items)), items)))

    def drain(self) -> None:
        """End the waits that are under way, and those to come, as UNAVAILABLE."""
        self._draining = True
        for wait in self._waits:
            wait.cancel()

    # --- About the server --------------------------------------------------------------------------------------------

    async def GetServerInfo(
        self, request: server.GetServerInfoRequest, context: Context
    ) -> server.GetServerInfoResponse:
        info = codec.ServerInfo(
            version=version("lightning-store-grpc"),
            strict=self._store.strict,
            capabilities={**self._store.capabilities, "otlp_traces": self.otlp_http_port is not None},
            message_bytes_max=self._config.max_message_bytes,
            page_rows_max=self._config.page_rows_max,
            page_bytes_max=self._config.page_bytes_max,
            wait_seconds_max=self._config.wait_seconds_max,
            replay_window_seconds=self._store.replay_window_seconds,
            otlp_http_port=self.otlp_http_port,
        )
        return codec.server_info_to_proto(info)

    async def GetStatistics(
        self, request: server.GetStatisticsRequest, context: Context
    ) -> server.GetStatisticsResponse:
        message = codec.statistics_to_proto(await self._store.statistics())
        message.rejected_spans = self.rejections.count
        return message

    # --- The queue ---------------------------------------------------------------------------------------------------

    async def StartRollout(
        self, request: rollout.StartRolloutRequest, context: Context
    ) -> rollout.StartRolloutResponse:
        require(request, "rollout", "rollout")
        new = await self._read(request, lambda one: records.new_rollout_from_proto(one.rollout, "rollout"))
        with await self._once(request, context):
            started = await self._records.execute(StartRollout(new, _worker_id(request)))
        return rollout.StartRolloutResponse(rollout=records.rollout_record_to_proto(*started))

    async def EnqueueRollouts(
        self, request: rollout.EnqueueRolloutsRequest, context: Context
    ) -> rollout.EnqueueRolloutsResponse:
        new = await self._read_all(
            request, lambda i, one: records.new_rollout_from_proto(one, f"rollouts[{i}]"), request.rollouts
        )
        key = requests.idempotency_key_from_proto(request)
        with await self._once(request, context):
            queued = await self._records.execute(EnqueueRollouts(new, key))
        return rollout.EnqueueRolloutsResponse(
            rollouts=await in_slices(lambda _, one: records.rollout_record_to_proto(one), queued)
        )

    async def DequeueRollouts(
        self, request: rollout.DequeueRolloutsRequest, context: Context
    ) -> rollout.DequeueRolloutsResponse:
        caller = caller_now()
        if caller is not None:
            caller.require_worker(_worker_id(request))
        limit = min(requests.dequeue_limit_from_proto(request), CLAIMS_MAX)
        wait = requests.dequeue_wait_from_proto(request, self._wait_seconds(context))
        if limit == 0:
            return rollout.DequeueRolloutsResponse()
        with await self._once(request, context):
            claim = self._records.claim(limit, _worker_id(request), wait)
            claimed = await (self._until_drained(claim) if wait > 0 else claim)
        return rollout.DequeueRolloutsResponse(rollouts=[records.rollout_record_to_proto(*one) for one in claimed])

    async def StartAttempt(
        self, request: rollout.StartAttemptRequest, context: Context
    ) -> rollout.StartAttemptResponse:
        rollout_id = required_text(request.rollout_id, "rollout_id")
        with await self._once(request, context):
            started = await self._records.execute(StartAttempt(rollout_id, _worker_id(request)))
        return rollout.StartAttemptResponse(rollout=records.rollout_record_to_proto(*started))

    # --- Spans -------------------------------------------------------------------------------------------------------

    async def AddSpans(self, request: span.AddSpansRequest, context: Context) -> span.AddSpansResponse:
        caller = caller_now()
        if caller is not None:
            caller.check_spans()
            caller.take_spans(len(request.spans))
        read = await self._read_all(request, lambda i, message: _span_record(message, f"spans[{i}]"), request.spans)
        if caller is not None:
            held = [(one.rollout_id, one.attempt_id) for one in read if isinstance(one, SpanRecord)]
            await caller.require_held(self._store, held)
        with await self._once(request, context):
            outcomes = await add_legal(read, self._records.add_spans)
        reply = span.AddSpansResponse()
        for outcome in outcomes:
            write_span_outcome(reply.outcomes.add(), outcome)
        return reply

    async def AllocateSpanSequenceIds(
        self, request: span.AllocateSpanSequenceIdsRequest, context: Context
    ) -> span.AllocateSpanSequenceIdsResponse:
        keys = [
            (
                required_text(key.rollout_id, f"keys[{i}].rollout_id"),
                required_text(key.attempt_id, f"keys[{i}].attempt_id"),
            )
            for i, key in enumerate(request.keys)
        ]
        caller = caller_now()
        if caller is not None:
            await caller.require_held(self._store, keys)
        with await self._once(request, context):
            numbers = await self._store.get_many_span_sequence_ids(keys)
        return span.AllocateSpanSequenceIdsResponse(sequence_ids=numbers)

    # --- Reading -----------------------------------------------------------------------------------------------------

    async def GetRollout(self, request: rollout.GetRolloutRequest, context: Context) -> rollout.GetRolloutResponse:
        rollout_id = required_text(request.rollout_id, "rollout_id")
        async with self._single_reads.place(context.peer):
            found = await self._records.rollout(rollout_id)
            return rollout.GetRolloutResponse(rollout=None if found is None else records.rollout_row_to_proto(found))

    async def GetLatestAttempt(
        self, request: rollout.GetLatestAttemptRequest, context: Context
    ) -> rollout.GetLatestAttemptResponse:
        found = await self._store.get_latest_attempt(required_text(request.rollout_id, "rollout_id"))
        return rollout.GetLatestAttemptResponse(attempt=None if found is None else codec.attempt_to_proto(found))

    async def GetResources(
        self, request: resources.GetResourcesRequest, context: Context
    ) -> resources.GetResourcesResponse:
        resources_id = required_text(request.resources_id, "resources_id")
        return resources.GetResourcesResponse(resources=await self._resources_message(resources_id, context))

    async def GetLatestResources(
        self, request: resources.GetLatestResourcesRequest, context: Context
    ) -> resources.GetLatestResourcesResponse:
        latest = await self._resources_message(None, context, **requests.run_from_proto(request))
        return resources.GetLatestResourcesResponse(resources=latest)

    async def _resources_message(
        self, resources_id: str | None, context: Context, run: str | None = None
    ) -> resources.Resources | None:
        """Those of this id as the caller may see them; for None the latest ones, of a run if one is given."""
        caller = caller_now()
        hides = caller is not None and not caller.sees_secrets
        convert = _masked_resources_to_proto if hides else records.resources_record_to_proto
        async with self._single_reads.place(context.peer):
            if resources_id is None:
                found = await self._records.latest_resources(run)
            else:
                found = await self._records.resources(resources_id)
            if found is None:
                return None
            return await self.heavy.convert(convert, found, found.payload_bytes)

    async def GetWorker(self, request: worker.GetWorkerRequest, context: Context) -> worker.GetWorkerResponse:
        found = await self._store.get_worker_by_id(required_text(request.worker_id, "worker_id"))
        return worker.GetWorkerResponse(worker=None if found is None else codec.worker_to_proto(found))

    async def ListRollouts(
        self, request: rollout.ListRolloutsRequest, context: Context
    ) -> rollout.ListRolloutsResponse:
        return await first_page(self._rollouts, request, self._limits, self._scans.place(context.peer))

    async def ListAttempts(
        self, request: rollout.ListAttemptsRequest, context: Context
    ) -> rollout.ListAttemptsResponse:
        return await first_page(self._attempts, request, self._limits, self._scans.place(context.peer))

    async def ListSpans(self, request: span.ListSpansRequest, context: Context) -> span.ListSpansResponse:
        return await first_page(self._span_rows, request, self._limits, self._scans.place(context.peer))

    async def ListResources(
        self, request: resources.ListResourcesRequest, context: Context
    ) -> resources.ListResourcesResponse:
        return await first_page(self._resources, request, self._limits, self._scans.place(context.peer))

    async def ListWorkers(self, request: worker.ListWorkersRequest, context: Context) -> worker.ListWorkersResponse:
        return await first_page(self._workers, request, self._limits, self._scans.place(context.peer))

    async def StreamQuery(self, request: StreamQueryRequest, context: Context) -> AsyncIterator[StreamQueryResponse]:
        kind = request.WhichOneof("query")
        if kind is None:
            raise InvalidArgumentError("query is missing; give one of the requests", field="query")
        if kind == "span_batch":
            query = queries.span_batch_from_proto(request.span_batch)
            async for reply in stream_rows(self._span_batches, query, self._limits, self._scans.place(context.peer)):
                yield reply
            return
        listings: dict[str, Listing[Any]] = {
            listing.rows_field: listing
            for listing in (self._rollouts, self._attempts, self._span_rows, self._resources, self._workers)
        }
        async for reply in all_pages(
            listings[kind], getattr(request, kind), self._limits, self._scans.place(context.peer)
        ):
            yield reply

    # --- Changes -----------------------------------------------------------------------------------------------------

    async def UpdateRollout(
        self, request: rollout.UpdateRolloutRequest, context: Context
    ) -> rollout.UpdateRolloutResponse:
        rollout_id = required_text(request.rollout_id, "rollout_id")
        columns, status = await self._read(request, records.rollout_change_from_proto)
        with await self._once(request, context):
            updated = await self._records.execute(UpdateRollout(rollout_id, columns, status))
        return rollout.UpdateRolloutResponse(rollout=records.rollout_record_to_proto(updated))

    async def CancelRollouts(
        self, request: rollout.CancelRolloutsRequest, context: Context
    ) -> rollout.CancelRolloutsResponse:
        rollout_ids, filters = selections.cancellation_from_proto(request)
        with await self._once(request, context):
            cancelled = await self._store.cancel_rollouts(rollout_ids, **filters)
        return rollout.CancelRolloutsResponse(
            rollouts=await in_slices(lambda _, one: codec.rollout_to_proto(one), cancelled)
        )

    async def RequeueRollouts(
        self, request: rollout.RequeueRolloutsRequest, context: Context
    ) -> rollout.RequeueRolloutsResponse:
        ids = [required_text(rollout_id, f"rollout_ids[{i}]") for i, rollout_id in enumerate(request.rollout_ids)]
        with await self._once(request, context):
            requeued = await self._store.requeue_rollouts(ids)
        return rollout.RequeueRolloutsResponse(
            rollouts=await in_slices(lambda _, one: codec.rollout_to_proto(one), requeued)
        )

    async def DeleteRollouts(
        self, request: rollout.DeleteRolloutsRequest, context: Context
    ) -> rollout.DeleteRolloutsResponse:
        which = selections.deletion_from_proto(request)
        with await self._once(request, context):
            deleted = await self._store.delete_rollouts(**which)
        audit("deleted rollouts", deleted)
        return rollout.DeleteRolloutsResponse(rollout_ids=deleted)

    async def UpdateAttempt(
        self, request: rollout.UpdateAttemptRequest, context: Context
    ) -> rollout.UpdateAttemptResponse:
        rollout_id = required_text(request.rollout_id, "rollout_id")
        attempt_id = requests.attempt_from_request(request)
        columns, status = await self._read(request, records.attempt_change_from_proto)
        caller = caller_now()
        if caller is not None:
            await caller.require_held(self._store, [(rollout_id, attempt_id)])
            if columns.get("worker_id") is not None:
                caller.require_worker(columns["worker_id"])
        with await self._once(request, context):
            updated = await self._records.execute(UpdateAttempt(rollout_id, attempt_id, columns, status))
        return rollout.UpdateAttemptResponse(attempt=records.attempt_record_to_proto(updated))

    async def AddResources(
        self, request: resources.AddResourcesRequest, context: Context
    ) -> resources.AddResourcesResponse:
        return resources.AddResourcesResponse(resources=await self._publish(None, request, context))

    async def UpdateResources(
        self, request: resources.UpdateResourcesRequest, context: Context
    ) -> resources.UpdateResourcesResponse:
        resources_id = required_text(request.resources_id, "resources_id")
        return resources.UpdateResourcesResponse(resources=await self._publish(resources_id, request, context))

    async def _publish(
        self,
        resources_id: str | None,
        request: resources.AddResourcesRequest | resources.UpdateResourcesRequest,
        context: Context,
    ) -> resources.Resources:
        text = await self._read(
            request, lambda one: records.resources_json_from_proto(one.resources_json, "resources_json")
        )
        policy = requests.policy_from_proto(request)
        check_policy_version(policy.get("policy_version"))
        with await self._once(request, context):
            published = await self._records.execute(PublishResources(resources_id, text, **policy))
        return await self.heavy.convert(records.resources_record_to_proto, published, published.payload_bytes)

    async def UpdateWorker(self, request: worker.UpdateWorkerRequest, context: Context) -> worker.UpdateWorkerResponse:
        stats = requests.heartbeat_from_proto(request)
        given = {} if stats is None else {"heartbeat_stats": stats}
        worker_id = _own_worker_id(request)
        updated = await self._store.update_worker(worker_id, **given)
        return worker.UpdateWorkerResponse(
            worker=codec.worker_to_proto(updated), assignment=await self._assignment(updated)
        )

    async def ReleaseWorker(
        self, request: worker.ReleaseWorkerRequest, context: Context
    ) -> worker.ReleaseWorkerResponse:
        released = await self._store.release_worker(_own_worker_id(request))
        return worker.ReleaseWorkerResponse(worker=None if released is None else codec.worker_to_proto(released))

    async def DeleteWorkers(
        self, request: worker.DeleteWorkersRequest, context: Context
    ) -> worker.DeleteWorkersResponse:
        ids = [required_text(one, f"worker_ids[{i}]") for i, one in enumerate(request.worker_ids)]
        with await self._once(request, context):
            deleted = await self._store.delete_workers(ids)
        audit("deleted workers", deleted)
        return worker.DeleteWorkersResponse(worker_ids=deleted)

    async def DeleteResources(
        self, request: resources.DeleteResourcesRequest, context: Context
    ) -> resources.DeleteResourcesResponse:
        ids = [required_text(one, f"resources_ids[{i}]") for i, one in enumerate(request.resources_ids)]
        with await self._once(request, context):
            deleted = await self._store.delete_resources(ids)
        audit("deleted resources", deleted)
        return resources.DeleteResourcesResponse(resources_ids=deleted)

    async def _assignment(self, of: Worker) -> worker.AssignmentState.ValueType:
        """What became of the attempt that a worker holds."""
        held = None if of.current_rollout_id is None else await self._store.get_rollout_by_id(of.current_rollout_id)
        if not isinstance(held, AttemptedRollout):
            return worker.ASSIGNMENT_STATE_UNSPECIFIED
        if held.attempt.attempt_id != of.current_attempt_id:
            return worker.ASSIGNMENT_STATE_SUPERSEDED
        if held.status == "cancelled":
            return worker.ASSIGNMENT_STATE_CANCELLED
        return worker.ASSIGNMENT_STATE_ACTIVE

    # --- Between stores ----------------------------------------------------------------------------------------------

    async def ExportRollouts(
        self, request: transfer.ExportRolloutsRequest, context: Context
    ) -> transfer.ExportRolloutsResponse:
        which = selections.exported_from_proto(request)
        begin = Place(*transfers.place_from_proto(request.page_token, "page_token"))
        async with self._scans.place(context.peer):
            page = await self._records.export_page(which, begin)
        return transfer.ExportRolloutsResponse(
            rollouts=map(transfers.stored_rollout_to_proto, page.rollouts),
            seen=page.seen,
            total=page.total,
            next_page_token=transfers.place_to_proto(page.next),
            checkpoints=map(transfers.checkpoint_to_proto, page.checkpoints),
            admissions=map(transfers.admission_record_to_proto, page.admissions),
        )

    async def ImportRollouts(
        self, request: transfer.ImportRolloutsRequest, context: Context
    ) -> transfer.ImportRolloutsResponse:
        rollouts = await self._read_all(
            request, lambda i, one: transfers.stored_rollout_from_proto(one, f"rollouts[{i}]"), request.rollouts
        )
        resources_ = await self._read_all(
            request, lambda i, one: transfers.resources_record_from_proto(one, f"resources[{i}]"), request.resources
        )
        workers = await self._read_all(
            request, lambda i, one: transfers.worker_record_from_proto(one, f"workers[{i}]"), request.workers
        )
        checkpoints = await self._read_all(
            request, lambda i, one: transfers.checkpoint_from_proto(one, f"checkpoints[{i}]"), request.checkpoints
        )
        admissions = await self._read_all(
            request, lambda i, one: transfers.admission_record_from_proto(one, f"admissions[{i}]"), request.admissions
        )
        with await self._once(request, context):
            done = await self._records.import_rollouts(rollouts, resources_, workers, checkpoints, admissions)
        audit("imported", **done.imported._asdict())
        return transfer.ImportRolloutsResponse(
            imported=transfer.TransferCounts(**done.imported._asdict()),
            present=transfer.TransferCounts(**done.present._asdict()),
        )

    # --- Waiting -----------------------------------------------------------------------------------------------------

    async def WaitForRollouts(
        self, request: rollout.WaitForRolloutsRequest, context: Context
    ) -> rollout.WaitForRolloutsResponse:
        distinct = list(dict.fromkeys(request.rollout_ids))
        seconds = requests.wait_seconds_from_proto(request, self._wait_seconds(context))
        return_when = enums.return_when_from_proto(request.return_when, "return_when")
        options: dict[str, Any] = {} if return_when == "all" else {"return_when": return_when}
        wait = self._store.wait_for_rollouts(rollout_ids=distinct, timeout=seconds, **options)
        ended = await self._until_drained(wait)
        complete = bool(return_when == "any" and ended) or not await self._any_pending(distinct, ended)
        return self._wait_reply([] if request.omit_unless_complete and not complete else ended, complete)

    async def _any_pending(self, rollout_ids: Sequence[str], ended: Sequence[Rollout]) -> bool:
        missing = set(rollout_ids).difference(one.rollout_id for one in ended)
        return bool(missing) and (await self._store.query_rollouts(rollout_id_in=list(missing), limit=0)).total > 0

    async def WatchRollouts(
        self, request: rollout.WatchRolloutsRequest, context: Context
    ) -> AsyncIterator[rollout.WatchRolloutsResponse]:
        await context.send_initial_metadata((ACCEPTED_METADATA,))
        after = request.after or None
        wanted, filters = selections.watched_from_proto(request)
        feed = self._store.watch_rollouts(wanted, after=after, **filters)
        if after == NOW:
            yield rollout.WatchRolloutsResponse(cursor=await begun_feed(feed))
        async with aclosing(self._followed("WatchRollouts", feed, context)) as runs:
            async for run in runs:
                async for completions in batches(_completed_to_bytes, run or (), self._limits):
                    yield with_rows(rollout.WatchRolloutsResponse(), "completions", completions)
                if run is None:
                    yield rollout.WatchRolloutsResponse(complete=True)

    async def WatchGroups(
        self, request: rollout.WatchGroupsRequest, context: Context
    ) -> AsyncIterator[rollout.WatchGroupsResponse]:
        await context.send_initial_metadata((ACCEPTED_METADATA,))
        wanted, terms = selections.watched_groups_from_proto(request)
        told = frozenset(request.told_group_ids)
        async with aclosing(self._followed("WatchGroups", self._store.watch_groups(wanted, **terms), context)) as runs:
            async for run in runs:
                new = [group for group in run or () if group.group_id not in told]
                async for groups in batches(_group_to_bytes, new, self._limits):
                    yield with_rows(rollout.WatchGroupsResponse(), "groups", groups)
                if run is None:
                    yield rollout.WatchGroupsResponse(complete=True)

    async def SetAdmission(
        self, request: rollout.SetAdmissionRequest, context: Context
    ) -> rollout.SetAdmissionResponse:
        run = required_text(request.run, "run")
        bound = request.max_open_groups if request.HasField("max_open_groups") else None
        with await self._once(request, context):
            admission = await self._store.set_admission(run, max_open_groups=bound, paused=request.paused)
        return rollout.SetAdmissionResponse(admission=selections.admission_to_proto(admission))

    async def GetAdmission(
        self, request: rollout.GetAdmissionRequest, context: Context
    ) -> rollout.GetAdmissionResponse:
        run = required_text(request.run, "run")
        async with self._scans.place(context.peer):
            return selections.admission_state_to_proto(await self._store.get_admission(run))

    async def ListAdmissions(
        self, request: rollout.ListAdmissionsRequest, context: Context
    ) -> rollout.ListAdmissionsResponse:
        async with self._scans.place(context.peer):
            admissions = map(selections.admission_to_proto, await self._store.query_admissions())
            return rollout.ListAdmissionsResponse(admissions=admissions)

    async def MarkConsumed(
        self, request: rollout.MarkConsumedRequest, context: Context
    ) -> rollout.MarkConsumedResponse:
        ids = [required_text(rollout_id, f"rollout_ids[{i}]") for i, rollout_id in enumerate(request.rollout_ids)]
        consumer = required_text(request.consumer, "consumer")
        with await self._once(request, context):
            marked = await self._store.mark_consumed(consumer, ids, checkpoint=requests.checkpoint_from_proto(request))
        return rollout.MarkConsumedResponse(rollout_ids=marked)

    async def RewindConsumer(
        self, request: rollout.RewindConsumerRequest, context: Context
    ) -> rollout.RewindConsumerResponse:
        consumer = required_text(request.consumer, "consumer")
        with await self._once(request, context):
            ids = await self._store.rewind_consumer(consumer, checkpoint=requests.checkpoint_from_proto(request))
        return rollout.RewindConsumerResponse(rollout_ids=ids)

    async def _followed(
        self, rpc: str, feed: AsyncIterator[T], context: Context
    ) -> AsyncGenerator[list[T] | None, None]:
        """The items of a feed as they come, then None if it ends by itself."""
        runs = FeedRuns(feed)
        self._waits.add(runs)
        if self._draining:
            runs.cancel()
        too_old = asyncio.get_running_loop().call_later(_stream_seconds(context, METHODS[rpc]), runs.cancel)
        try:
            async for run in runs:
                yield run
        finally:
            too_old.cancel()
            runs.cancel()
            self._waits.discard(runs)
        if not runs.cancelled:
            yield None
        elif self._draining:
            raise StoreUnavailableError("the server is shutting down; watch again when it is back")

    def _wait_seconds(self, context: Context) -> float:
        """How long this call may wait."""
        left = seconds_left(context)
        longest = self._config.wait_seconds_max
        return longest if left is None else min(longest, _less_margin(left))

    async def _until_drained(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of a call that may wait; StoreUnavailableError as soon as the server drains."""
        wait = asyncio.ensure_future(call)
        self._waits.add(wait)
        if self._draining:
            wait.cancel()
        try:
            return await wait
        except asyncio.CancelledError:
            wait.cancel()  # as this call is, if not by it
            if self._draining and wait.cancelled():
                raise StoreUnavailableError("the server is shutting down; wait again when it is back") from None
            raise
        finally:
            self._waits.discard(wait)
            del wait  # whose error, if it has one, knows this frame

    def _wait_reply(self, ended: Sequence[Rollout], complete: bool) -> rollout.WaitForRolloutsResponse:
        """The rollouts that fit into one message; those that do not are named."""
        reply = rollout.WaitForRolloutsResponse(complete=complete)
        size_bytes = 0
        for one in ended:
            message = codec.rollout_to_proto(one)
            size_bytes += message.ByteSize()
            if size_bytes > self._limits.bytes and reply.rollouts:
                reply.omitted_rollout_ids.append(one.rollout_id)
            else:
                reply.rollouts.append(message)
        return reply


def _span_record(message: span.NewSpan, field: str) -> SpanRecord | StoreError:
    """The record of a span, or what is wrong with it."""
    try:
        return spans.span_record_from_proto(message, field)
    except StoreError as error:
        return error


def _completed_to_bytes(completed: CompletedRollout) -> bytes:
    return selections.completed_to_proto(completed).SerializeToString()


def _group_to_bytes(group: Group) -> bytes:
    return selections.group_to_proto(group).SerializeToString()


def _less_margin(seconds: float) -> float:
    return seconds - min(REPLY_MARGIN_SECONDS, seconds / 2)


def _stream_seconds(context: Context, method: Method) -> float:
    """How long a stream may go on before it ends by itself, so that its caller opens another."""
    left = seconds_left(context)
    return _less_margin(method.deadline_seconds if left is None else left)


def _check_request_id(request: Any) -> None:
    """InvalidArgumentError if a call came without a request id."""
    if not request.request_id:
        message = "request_id is missing; make a new one (a UUID, say) for each call, and send it again with a retry"
        raise InvalidArgumentError(message, field="request_id")
    if len(request.request_id) > REQUEST_ID_CHARS_MAX:
        message = f"request_id has {len(request.request_id)} characters; give at most {REQUEST_ID_CHARS_MAX}"
        raise InvalidArgumentError(message, field="request_id")


def _asked(request: Any) -> bytes:
    """All that the request asks for; of a claim not how long it may wait, which is less for a call that is made
    again."""
    if isinstance(request, rollout.DequeueRolloutsRequest) and request.HasField("max_wait"):
        of_any_wait = rollout.DequeueRolloutsRequest()
        of_any_wait.CopyFrom(request)
        of_any_wait.ClearField("max_wait")
        request = of_any_wait
    data: bytes = request.SerializeToString(deterministic=True)
    return data


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _worker_id(request: Any) -> str | None:
    """The worker's id; None where it is absent or empty."""
    return bounded_text(request.worker_id, "worker_id") or None


def _own_worker_id(request: Any) -> str:
    """The id of the worker that a request is about. PermissionDeniedError if its caller may not be that worker."""
    worker_id = required_text(request.worker_id, "worker_id")
    caller = caller_now()
    if caller is not None:
        caller.require_worker(worker_id)
    return worker_id


def _shown(message: resources.Resources) -> resources.Resources:
    """Resources as the caller may see them."""
    caller = caller_now()
    return message if caller is None or caller.sees_secrets else _masked(message)


def _masked_resources_to_proto(record: ResourcesRecord) -> resources.Resources:
    return _masked(records.resources_record_to_proto(record))


def _masked(message: resources.Resources) -> resources.Resources:
    for name, text in message.resources_json.items():
        message.resources_json[name] = json.dumps(masked(json.loads(text)), ensure_ascii=False)
    return message
