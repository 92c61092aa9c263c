"""What users may import. A name that leaves these lists breaks somebody: say so in the changelog."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest

import lightning_store
import lightning_store_client
import lightning_store_server
from lightning_store import errors

ERRORS = [
    "AttemptFencedError",
    "AttemptNotFoundError",
    "CallCancelledError",
    "CheckpointUnknownError",
    "CursorUnknownError",
    "InternalError",
    "IdempotencyKeyReusedError",
    "InUseError",
    "InvalidArgumentError",
    "InvalidTransitionError",
    "InvalidTypeError",
    "MessageTooLargeError",
    "NoAttemptsError",
    "NotJsonError",
    "PermissionDeniedError",
    "RequestIdReusedError",
    "ResourceExhaustedError",
    "ResourcesNotFoundError",
    "RolloutNotFoundError",
    "SpansEvictedError",
    "SpansRejectedError",
    "StoreError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "UnauthenticatedError",
    "UnsortableFieldError",
    "UnsupportedError",
]

STORES = [
    "Clock",
    "InMemoryLightningStore",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreStatistics",
    "LightningStoreThreaded",
    "SqliteLightningStore",
    "SystemClock",
    "request_scope",
]

MODEL = [
    "LLM",
    "UNSET",
    "Admission",
    "AdmissionState",
    "Attempt",
    "AttemptStatus",
    "AttemptedRollout",
    "CompletedRollout",
    "EnqueueRolloutRequest",
    "Event",
    "Group",
    "InstrumentationScope",
    "Link",
    "NamedResources",
    "OtelResource",
    "PaginatedResult",
    "PromptTemplate",
    "ProxyLLM",
    "RejectedSpan",
    "Resource",
    "ResourcesUpdate",
    "Rollout",
    "RolloutConfig",
    "RolloutMode",
    "RolloutStatus",
    "Span",
    "SpanContext",
    "TraceStatus",
    "Unset",
    "Worker",
    "WorkerStatus",
]


def test_public_names_of_lightning_store() -> None:
    assert sorted(lightning_store.__all__) == sorted([*ERRORS, *STORES, *MODEL])
    assert all(hasattr(lightning_store, name) for name in lightning_store.__all__)


def test_every_error_is_public() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.StoreError)
    }
    assert defined == set(ERRORS)


def test_public_names_of_the_server() -> None:
    assert "LightningStoreServer" in lightning_store_server.__all__
    assert inspect.isclass(lightning_store_server.LightningStoreServer)


def test_public_names_of_the_client() -> None:
    assert lightning_store_client.__all__ == [
        "Cancellation",
        "LightningStoreClient",
        "LightningStoreSpanProcessor",
        "SyncLightningStoreClient",
        "WorkerSession",
        "attempt_scope",
    ]
    assert all(hasattr(lightning_store_client, name) for name in lightning_store_client.__all__)
    assert issubclass(lightning_store_client.LightningStoreClient, lightning_store.LightningStore)


def test_unset_stays_one_object_when_pickled() -> None:
    assert pickle.loads(pickle.dumps(lightning_store.UNSET)) is lightning_store.UNSET


@pytest.mark.parametrize(
    ("package", "needed"),
    [
        ("lightning_store.engine", ["lightning_store.engine", "lightning_store.engine.idempotency"]),
        ("lightning_store.backends", ["lightning_store.backends", "lightning_store.backends.records"]),
        ("psutil", []),
    ],
)
def test_a_client_does_with_little(package: str, needed: list[str]) -> None:
    """It makes request ids and reads records; rules, executor and backends are for whoever holds a store."""
    program = f"""if True:
        import sys, lightning_store_client
        print(*sorted(name for name in sys.modules if f"{{name}}.".startswith("{package}.")))
    """
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    assert loaded.split() == needed


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="lightning_store.*NoSuchStore"):
        getattr(lightning_store, "NoSuchStore")  # noqa: B009  # type checkers know that it is not there
