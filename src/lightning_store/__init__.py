"""The store that coordinates agent reinforcement learning: the contract, its data, and stores in this process.

``LightningStore`` is the contract; ``InMemoryLightningStore`` keeps everything in memory, ``SqliteLightningStore`` in a
database. To share a store between processes and machines, run ``lightning-store-grpc serve`` and use
``lightning_store_client``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_store.clock import Clock, SystemClock
from lightning_store.engine.idempotency import request_scope
from lightning_store.errors import (
    AttemptFencedError,
    AttemptNotFoundError,
    CallCancelledError,
    CheckpointUnknownError,
    CursorUnknownError,
    IdempotencyKeyReusedError,
    InternalError,
    InUseError,
    InvalidArgumentError,
    InvalidTransitionError,
    InvalidTypeError,
    MessageTooLargeError,
    NoAttemptsError,
    NotJsonError,
    PermissionDeniedError,
    RejectedSpan,
    RequestIdReusedError,
    ResourceExhaustedError,
    ResourcesNotFoundError,
    RolloutNotFoundError,
    SpansEvictedError,
    SpansRejectedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnauthenticatedError,
    UnsortableFieldError,
    UnsupportedError,
)
from lightning_store.model import (
    LLM,
    UNSET,
    Admission,
    AdmissionState,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    CompletedRollout,
    EnqueueRolloutRequest,
    Event,
    Group,
    InstrumentationScope,
    Link,
    NamedResources,
    OtelResource,
    PaginatedResult,
    PromptTemplate,
    ProxyLLM,
    Resource,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    Span,
    SpanContext,
    TraceStatus,
    Unset,
    Worker,
    WorkerStatus,
)
from lightning_store.store import LightningStore, LightningStoreCapabilities, LightningStoreStatistics
from lightning_store.threaded import LightningStoreThreaded

if TYPE_CHECKING:
    from lightning_store.in_memory import InMemoryLightningStore
    from lightning_store.sqlite_store import SqliteLightningStore

__all__ = [
    "LLM",
    "UNSET",
    "Admission",
    "AdmissionState",
    "Attempt",
    "AttemptFencedError",
    "AttemptNotFoundError",
    "AttemptStatus",
    "AttemptedRollout",
    "CallCancelledError",
    "CheckpointUnknownError",
    "Clock",
    "CompletedRollout",
    "CursorUnknownError",
    "EnqueueRolloutRequest",
    "Event",
    "Group",
    "IdempotencyKeyReusedError",
    "InMemoryLightningStore",
    "InUseError",
    "InstrumentationScope",
    "InternalError",
    "InvalidArgumentError",
    "InvalidTransitionError",
    "InvalidTypeError",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreStatistics",
    "LightningStoreThreaded",
    "Link",
    "MessageTooLargeError",
    "NamedResources",
    "NoAttemptsError",
    "NotJsonError",
    "OtelResource",
    "PaginatedResult",
    "PermissionDeniedError",
    "PromptTemplate",
    "ProxyLLM",
    "RejectedSpan",
    "RequestIdReusedError",
    "Resource",
    "ResourceExhaustedError",
    "ResourcesNotFoundError",
    "ResourcesUpdate",
    "Rollout",
    "RolloutConfig",
    "RolloutMode",
    "RolloutNotFoundError",
    "RolloutStatus",
    "Span",
    "SpanContext",
    "SpansEvictedError",
    "SpansRejectedError",
    "SqliteLightningStore",
    "StoreError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "SystemClock",
    "TraceStatus",
    "UnauthenticatedError",
    "Unset",
    "UnsortableFieldError",
    "UnsupportedError",
    "Worker",
    "WorkerStatus",
    "request_scope",
]


if not TYPE_CHECKING:  # or any name would do for type checkers

    def __getattr__(name: str) -> Any:
        """A store is imported when somebody asks for it: a client does without its engine."""
        match name:
            case "InMemoryLightningStore":
                from lightning_store.in_memory import InMemoryLightningStore as Store
            case "SqliteLightningStore":
                from lightning_store.sqlite_store import SqliteLightningStore as Store
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = Store
        return Store
