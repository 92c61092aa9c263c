"""The table of RPCs: what a client may repeat, how long it waits, and which role may call them.

The client's call funnel and the server's interceptors read it. A method that is not in it is never retried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from lightning_store.v1 import service_pb2

REPEATED_METADATA: Final = ("lightning-store-repeated", "1")
"""Sent with a call that was sent before: the first one may still arrive. See ``lightning_store.engine.idempotency``."""
ACCEPTED_METADATA: Final = ("lightning-store-accepted", "1")
"""What a server sends as soon as it has taken a long stream, a session or a feed: if that breaks off, its client knows
that the server was there."""

SERVICE: Final = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"].full_name
TRACE_SERVICE: Final = trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name
"""OTLP's, which the server offers beside its own."""


class Repeat(Enum):
    """What it takes to send a call again after an attempt whose outcome is unknown."""

    READ = "READ"
    """Nothing: it changes nothing."""
    ONCE = "ONCE"
    """The same ``request_id``: the server answers a call that it has seen with the reply that it gave."""
    LWW = "LWW"
    """Nothing, but the last write wins: one that waited behind retries may be out of date, and is better dropped."""


class Role(Enum):
    """What the holder of a token may do. Each role may do what those before it may."""

    READER = "reader"
    """Read."""
    RUNNER = "runner"
    """Claim rollouts, send heartbeats, and report on the attempts that its workers hold."""
    ALGORITHM = "algorithm"
    """Enqueue, change and cancel rollouts, and publish resources."""
    ADMIN = "admin"
    """Delete and import."""

    def suffices_for(self, needed: Role) -> bool:
        """Whether a holder of this role may do what asks for ``needed``."""
        return _RANKS[self] >= _RANKS[needed]


_RANKS: Final[Mapping[Role, int]] = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC."""

    name: str
    repeat: Repeat
    role: Role
    """The least one that may call it."""
    deadline_seconds: float = 30.0
    """Default for all attempts of one call together. A long poll adds what it waits."""
    wait_field: str = ""
    """The field of the request that says how long the server may hold the call; empty where it never does."""
    streams: bool = False
    """Whether the reply is a stream."""
    service: str = SERVICE

    @property
    def long_poll(self) -> bool:
        """Whether the server may hold the call until something happens."""
        return bool(self.wait_field)

    @property
    def path(self) -> str:
        """The name that gRPC has for it."""
        return f"/{self.service}/{self.name}"


_READ: Final = (
    "GetServerInfo",
    "GetStatistics",
    "GetRollout",
    "GetLatestAttempt",
    "GetResources",
    "GetLatestResources",
    "GetWorker",
    "GetAdmission",
    "ListAdmissions",
    "ListRollouts",
    "ListAttempts",
    "ListSpans",
    "ListResources",
    "ListWorkers",
)
_ONCE: Final[Mapping[str, Role]] = {
    "StartRollout": Role.ALGORITHM,
    "EnqueueRollouts": Role.ALGORITHM,
    "StartAttempt": Role.ALGORITHM,
    "UpdateRollout": Role.ALGORITHM,
    "CancelRollouts": Role.ALGORITHM,
    "RequeueRollouts": Role.ALGORITHM,
    "SetAdmission": Role.ALGORITHM,
    "MarkConsumed": Role.ALGORITHM,
    "RewindConsumer": Role.ALGORITHM,
    "DeleteRollouts": Role.ADMIN,
    "UpdateAttempt": Role.RUNNER,
    "AddSpans": Role.RUNNER,
    "AllocateSpanSequenceIds": Role.RUNNER,
    "AddResources": Role.ALGORITHM,
    "UpdateResources": Role.ALGORITHM,
    "ImportRollouts": Role.ADMIN,
    "DeleteWorkers": Role.ADMIN,
    "DeleteResources": Role.ADMIN,
}

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        method.name: method
        for method in (
            *(Method(name, Repeat.READ, Role.READER) for name in _READ),
            *(Method(name, Repeat.ONCE, role) for name, role in _ONCE.items()),
            Method("DequeueRollouts", Repeat.ONCE, Role.RUNNER, wait_field="max_wait"),
            Method("UpdateWorker", Repeat.LWW, Role.RUNNER, deadline_seconds=10.0),
            Method("ReleaseWorker", Repeat.LWW, Role.RUNNER, deadline_seconds=10.0),
            Method("ExportRollouts", Repeat.READ, Role.ALGORITHM),
            Method("StreamQuery", Repeat.READ, Role.READER, deadline_seconds=300.0, streams=True),
            Method("WaitForRollouts", Repeat.READ, Role.READER, wait_field="wait"),
            Method("WatchRollouts", Repeat.READ, Role.READER, deadline_seconds=300.0, streams=True),
            Method("WatchGroups", Repeat.READ, Role.ALGORITHM, deadline_seconds=300.0, streams=True),
        )
    }
)
"""By name, such as "GetRollout"."""

SESSION: Final = "Session"
"""Not in the table: it is no call by itself, but carries calls."""

_DESCRIPTORS: Final = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"].methods_by_name

REQUESTS: Final[Mapping[str, type[Message]]] = MappingProxyType(
    {name: GetMessageClass(_DESCRIPTORS[name].input_type) for name in METHODS}
)
"""The class of each method's request."""
REPLIES: Final[Mapping[str, type[Message]]] = MappingProxyType(
    {name: GetMessageClass(_DESCRIPTORS[name].output_type) for name in METHODS}
)
"""The class of each method's reply."""

TRACE_EXPORT: Final = Method("Export", Repeat.ONCE, Role.RUNNER, service=TRACE_SERVICE)
"""Has no request id: a span that is sent again is known by its rollout, attempt and span id."""

BY_PATH: Final[Mapping[str, Method]] = MappingProxyType(
    {method.path: method for method in (*METHODS.values(), TRACE_EXPORT)}
)
"""By the path that gRPC has for it: all that the server offers, but for the standard services health and reflection."""
