"""The tables of operations: all paths of each interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Literal

from lightning_store.wire.methods import Role
from lightning_store_server.http.rest import handlers as do
from lightning_store_server.http.rest import legacy
from lightning_store_server.http.rest import shapes as s
from lightning_store_server.http.rest.operations import Operation, Version

V0_3: Final = "/v1/agl"
V0_2: Final = "/agl/v1"
CREATED: Final = HTTPStatus.CREATED


def _adder(version: Version, prefix: str) -> tuple[list[Operation], Callable[..., None], Callable[..., None]]:
    """The list of a table, and what adds a GET or a POST to it."""
    table: list[Operation] = []

    def add(
        method: Literal["GET", "POST"], path: str, rpc: str, handle: Any, returns: Any, summary: str, **more: Any
    ) -> None:
        operation = Operation(version, method, prefix + path, rpc, summary, handle, returns, **more)
        table.append(operation)

    return table, partial(add, "GET"), partial(add, "POST")


def _operations_0_3() -> Sequence[Operation]:
    table, get, post = _adder("0.3", V0_3)
    row, rows = s.AttemptedRollout | s.Rollout, s.Page[s.AttemptedRollout | s.Rollout]
    search = {"summary": "The same as GET, with the query as a body"}

    get("/health", "", do.health, s.Health, "Whether the server is there")
    get("/statistics", "GetStatistics", do.statistics, dict[str, Any], "How much is stored")

    post(
        "/queues/rollouts/enqueue",
        "EnqueueRollouts",
        do.enqueue,
        list[s.Rollout],
        "Queue rollouts",
        status=CREATED,
        body=s.EnqueueRequest,
    )
    post(
        "/queues/rollouts/dequeue",
        "DequeueRollouts",
        do.dequeue,
        list[s.AttemptedRollout],
        "Claim rollouts",
        body=s.DequeueRequest,
        body_optional=True,
    )
    post(
        "/waits/rollouts",
        "WaitForRollouts",
        do.wait,
        list[s.Rollout],
        "Wait until rollouts have ended, for 20 s at the most",
        body=s.WaitRequest,
    )

    post(
        "/rollouts",
        "StartRollout",
        do.start_rollout,
        s.AttemptedRollout,
        "Make a rollout and its first attempt",
        status=CREATED,
        body=s.StartRolloutRequest,
    )
    get("/rollouts", "ListRollouts", do.rollouts, rows, "Rollouts", query=s.RolloutsQuery)
    post("/rollouts/search", "ListRollouts", do.rollouts, rows, **search, body=s.RolloutsQuery)
    get("/rollouts/{rollout_id}", "GetRollout", do.rollout, row | None, "A rollout; null if there is none")
    post(
        "/rollouts/{rollout_id}",
        "UpdateRollout",
        do.update_rollout,
        s.Rollout,
        "Change a rollout",
        body=s.RolloutUpdate,
    )

    attempts = "/rollouts/{rollout_id}/attempts"
    post(
        attempts,
        "StartAttempt",
        do.start_attempt,
        s.AttemptedRollout,
        "Start an attempt",
        status=CREATED,
        body=s.StartAttemptRequest,
        body_optional=True,
    )
    get(attempts, "ListAttempts", do.attempts, s.Page[s.Attempt], "Attempts of a rollout", query=s.AttemptsQuery)
    post(f"{attempts}/search", "ListAttempts", do.attempts, s.Page[s.Attempt], **search, body=s.AttemptsQuery)
    get(f"{attempts}/latest", "GetLatestAttempt", do.latest_attempt, s.Attempt | None, "Its latest attempt, or null")
    post(
        attempts + "/{attempt_id}",
        "UpdateAttempt",
        do.update_attempt,
        s.Attempt,
        "Change an attempt; `latest` is the newest",
        body=s.AttemptUpdate,
    )

    get("/workers", "ListWorkers", do.workers, s.Page[s.Worker], "Workers", query=s.WorkersQuery)
    post("/workers/search", "ListWorkers", do.workers, s.Page[s.Worker], **search, body=s.WorkersQuery)
    get("/workers/{worker_id}", "GetWorker", do.worker, s.Worker | None, "A worker; null if there is none")
    post(
        "/workers/{worker_id}",
        "UpdateWorker",
        do.update_worker,
        s.Worker,
        "A worker's heartbeat",
        body=s.WorkerUpdate,
        body_optional=True,
    )

    get("/resources", "ListResources", do.resources, s.Page[s.Resources], "Resources", query=s.ResourcesQuery)
    post(
        "/resources",
        "AddResources",
        do.add_resources,
        s.Resources,
        "Publish resources",
        status=CREATED,
        body=s.NamedResources,
    )
    get("/resources/latest", "GetLatestResources", do.latest_resources, s.Resources | None, "The latest, or null")
    get("/resources/{resources_id}", "GetResources", do.resources_by_id, s.Resources | None, "Those of an id, or null")
    post(
        "/resources/{resources_id}",
        "UpdateResources",
        do.update_resources,
        s.Resources,
        "Replace those of an id",
        body=s.NamedResources,
    )

    post(
        "/spans",
        "AddSpans",
        do.add_span,
        s.Span | None,
        "Store a span; null if it is stored already",
        status=CREATED,
        body=s.Span,
    )
    get("/spans", "ListSpans", do.spans, s.Page[s.Span], "Spans of a rollout", query=s.SpansQuery)
    post("/spans/search", "ListSpans", do.spans, s.Page[s.Span], **search, body=s.SpansQuery)
    post(
        "/spans/next",
        "AllocateSpanSequenceIds",
        do.next_sequence_id,
        s.SequenceId,
        "The next sequence id of a rollout",
        body=s.SequenceIdRequest,
    )
    return table


def _operations_0_2() -> Sequence[Operation]:
    """Resources under a path each, as 0.2 was developed on."""
    table, get, post = _adder("0.2", V0_2)
    get("/health", "", do.health, s.Health, "Whether the server is there")
    post(
        "/queues/rollouts/enqueue",
        "EnqueueRollouts",
        do.enqueue_one,
        s.Rollout,
        "Queue a rollout",
        status=CREATED,
        body=s.NewRollout,
    )
    post(
        "/queues/rollouts/dequeue",
        "DequeueRollouts",
        do.dequeue_one,
        s.AttemptedRollout | None,
        "Claim a rollout; null if there is none",
        body=s.StartAttemptRequest,
        body_optional=True,
    )
    post(
        "/waits/rollouts",
        "WaitForRollouts",
        do.wait,
        list[s.Rollout],
        "Wait until rollouts have ended, for 20 s at the most",
        body=s.WaitRequest,
    )

    post(
        "/rollouts",
        "StartRollout",
        do.start_rollout,
        s.AttemptedRollout,
        "Make a rollout and its first attempt",
        status=CREATED,
        body=s.StartRolloutRequest,
    )
    get("/rollouts", "ListRollouts", do.rollouts_02, list[s.Rollout], "Rollouts", query=s.RolloutsQuery02)
    post("/rollouts/search", "ListRollouts", do.rollouts_02, list[s.Rollout], "The same", body=s.RolloutsQuery02)
    get("/rollouts/{rollout_id}", "GetRollout", do.rollout_02, s.Rollout | None, "A rollout; null if there is none")
    post(
        "/rollouts/{rollout_id}",
        "UpdateRollout",
        do.update_rollout,
        s.Rollout,
        "Change a rollout",
        body=s.RolloutUpdate,
    )
    attempts = "/rollouts/{rollout_id}/attempts"
    post(
        attempts,
        "StartAttempt",
        do.start_attempt,
        s.AttemptedRollout,
        "Start an attempt",
        status=CREATED,
        body=s.StartAttemptRequest,
        body_optional=True,
    )
    get(attempts, "ListAttempts", do.attempts_02, list[s.Attempt], "Attempts of a rollout")
    get(f"{attempts}/latest", "GetLatestAttempt", do.latest_attempt, s.Attempt | None, "Its latest attempt, or null")
    post(
        attempts + "/{attempt_id}",
        "UpdateAttempt",
        do.update_attempt,
        s.Attempt,
        "Change an attempt; `latest` is the newest",
        body=s.AttemptUpdate,
    )

    post(
        "/resources",
        "AddResources",
        do.add_resources,
        s.Resources,
        "Publish resources",
        status=CREATED,
        body=s.NamedResources,
    )
    get("/resources/latest", "GetLatestResources", do.latest_resources, s.Resources | None, "The latest, or null")
    get("/resources/{resources_id}", "GetResources", do.resources_by_id, s.Resources | None, "Those of an id, or null")
    post(
        "/resources/{resources_id}",
        "UpdateResources",
        do.update_resources,
        s.Resources,
        "Replace those of an id",
        body=s.NamedResources,
    )

    post("/spans", "AddSpans", do.add_span_02, s.Span, "Store a span", status=CREATED, body=s.Span)
    get("/spans", "ListSpans", do.spans_02, list[s.Span], "Spans of a rollout", query=s.SpansQuery02)
    post(
        "/spans/next",
        "AllocateSpanSequenceIds",
        do.next_sequence_id,
        s.SequenceId,
        "The next sequence id of a rollout",
        body=s.SequenceIdRequest,
    )
    return table


def _operations_0_2_2(prefix: str) -> Sequence[Operation]:
    """A path for each method, as the released client of 0.2 calls them."""
    table, get, post = _adder("0.2", prefix)
    if not prefix:
        get("/health", "", do.health, s.Health, "Whether the server is there")
    post(
        "/start_rollout",
        "StartRollout",
        do.start_rollout_02,
        s.AttemptedRollout,
        "Make a rollout and its first attempt",
        body=s.NewRollout,
    )
    post("/enqueue_rollout", "EnqueueRollouts", do.enqueue_one, s.Rollout, "Queue a rollout", body=s.NewRollout)
    get(
        "/dequeue_rollout",
        "DequeueRollouts",
        do.dequeue_one,
        s.AttemptedRollout | None,
        "Claim a rollout; null if there is none",
    )
    post(
        "/start_attempt",
        "StartAttempt",
        do.start_attempt_02,
        s.AttemptedRollout,
        "Start an attempt",
        body=s.RolloutId02,
    )
    post("/query_rollouts", "ListRollouts", do.rollouts_02, list[s.Rollout], "Rollouts", body=s.RolloutsQuery02)
    get("/query_attempts/{rollout_id}", "ListAttempts", do.attempts_02, list[s.Attempt], "Attempts of a rollout")
    get(
        "/get_latest_attempt/{rollout_id}",
        "GetLatestAttempt",
        do.latest_attempt,
        s.Attempt | None,
        "Its latest attempt, or null",
    )
    get("/get_rollout_by_id/{rollout_id}", "GetRollout", do.rollout_02, s.Rollout | None, "A rollout, or null")
    post("/add_resources", "AddResources", do.add_resources_02, s.Resources, "Publish resources", body=s.AddResources02)
    post(
        "/update_resources",
        "UpdateResources",
        do.update_resources_02,
        s.Resources,
        "Replace those of an id",
        body=s.UpdateResources02,
    )
    get(
        "/get_resources_by_id/{resources_id}",
        "GetResources",
        do.resources_by_id,
        s.Resources | None,
        "Those of an id, or null",
    )
    get("/get_latest_resources", "GetLatestResources", do.latest_resources, s.Resources | None, "The latest, or null")
    post("/add_span", "AddSpans", do.add_span_02, s.Span, "Store a span", body=s.Span)
    get(
        "/get_next_span_sequence_id/{rollout_id}/{attempt_id}",
        "AllocateSpanSequenceIds",
        do.next_sequence_id_02,
        int,
        "The next sequence id of a rollout",
    )
    post(
        "/wait_for_rollouts",
        "WaitForRollouts",
        do.wait,
        list[s.Rollout],
        "Wait until rollouts have ended, for 20 s at the most",
        body=s.WaitRequest,
    )
    get(
        "/query_spans/{rollout_id}",
        "ListSpans",
        do.spans_of_rollout_02,
        list[s.Span],
        "Spans of a rollout",
        query=s.SpansOfRolloutQuery02,
    )
    post(
        "/update_rollout", "UpdateRollout", do.update_rollout_02, s.Rollout, "Change a rollout", body=s.UpdateRollout02
    )
    post(
        "/update_attempt",
        "UpdateAttempt",
        do.update_attempt_02,
        s.Attempt,
        "Change an attempt; `latest` is the newest",
        body=s.UpdateAttempt02,
    )
    return table


def _operations_legacy() -> Sequence[Operation]:
    table, get, post = _adder("legacy", "")
    get("/task", "DequeueRollouts", legacy.next_task, s.TaskIfAny, "Claim a task")
    get("/resources/latest", "GetLatestResources", legacy.latest_resources, s.Resources, "The latest; 404 without any")
    get("/resources/{resources_id}", "GetResources", legacy.resources_by_id, s.Resources, "Those of an id, or 404")
    post("/rollout", "UpdateAttempt", legacy.report, s.Done, "Report what became of a task", body=s.LegacyRollout)
    return table


OPERATIONS: Final[Sequence[Operation]] = (
    *_operations_0_3(),
    *_operations_0_2(),
    *_operations_0_2_2(V0_2),
    *_operations_0_2_2(""),
    *_operations_legacy(),
)


def version_at(path: str) -> Version | None:
    """The interface to which a path belongs; None if to none."""
    if path.startswith(f"{V0_3}/"):
        return "0.3"
    if path.startswith(f"{V0_2}/"):
        return "0.2"
    return next((one.version for one in OPERATIONS if one.pattern.match(path)), None)


def role_at(method: str, path: str) -> Role | None:
    """The least role for a request; None if it is for no operation."""
    return next((one.role for one in OPERATIONS if one.method == method and one.pattern.match(path)), None)
