"""Errors over a real wire: each class of the tree comes back as itself, and nothing of the server leaks."""

from __future__ import annotations

from concurrent import futures

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from pydantic import TypeAdapter, ValidationError

from lightning_store.errors import (
    CallCancelledError,
    InternalError,
    InvalidArgumentError,
    InvalidTypeError,
    MessageTooLargeError,
    ResourceExhaustedError,
    RolloutNotFoundError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnsupportedError,
)
from lightning_store.model import EnqueueRolloutRequest
from lightning_store.v1 import span_pb2
from lightning_store.wire.errors import (
    STATUS_CODES,
    from_rpc_error,
    span_outcome_from_proto,
    to_status,
    write_span_outcome,
)


def every_class(cls=StoreError):
    """The classes of the tree, less what tests derive."""
    return [
        cls,
        *(sub for child in cls.__subclasses__() for sub in every_class(child) if sub.__module__ == cls.__module__),
    ]


class Wire:
    """A server whose one method fails as told, and a channel to it."""

    def __init__(self, **options):
        self.failure = None
        self.server = grpc.server(futures.ThreadPoolExecutor(2), options=list(options.items()))
        handler = grpc.unary_unary_rpc_method_handler(
            self._call, request_deserializer=Empty.FromString, response_serializer=Empty.SerializeToString
        )
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Call": handler})])
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def _call(self, request, context):
        context.abort_with_status(self.failure)

    def error(self, path="/test.Service/Call", payload=b"", **arguments):
        """What a call raises, as the client shows it."""
        with pytest.raises(grpc.RpcError) as caught:
            call(self.channel, path, payload, **arguments)
        return from_rpc_error(caught.value)

    def raised(self, error):
        """``error`` raised on the server, as the client shows it."""
        status = to_status(error)
        self.failure = GrpcStatus(status.code, status.message, status.trailing_metadata)
        return self.error()

    def close(self):
        self.channel.close()
        self.server.stop(None).wait()


def call(channel, path, payload, **arguments):
    """A call with bytes for messages, which need no serializer."""
    return channel.unary_unary(path, None, None)(payload, **arguments)


class GrpcStatus(grpc.Status):
    def __init__(self, code, details, trailing_metadata=()):
        self.code, self.details, self.trailing_metadata = code, details, trailing_metadata


@pytest.fixture(scope="module")
def wire():
    wire = Wire(**{"grpc.max_receive_message_length": 1000})
    yield wire
    wire.close()


def test_the_table_has_every_class():
    assert set(every_class()) == set(STATUS_CODES)


def test_reasons_are_unique():
    assert len({cls.reason for cls in every_class()}) == len(every_class())


@pytest.mark.parametrize("cls", every_class())
def test_every_class_comes_back_as_itself(wire, cls):
    details = {"field": "a.b", "incident_id": "x"} if cls is InternalError else {"field": "a.b", "rollout_id": "ロ"}
    error = wire.raised(cls("what happened: ünïcode\nand a second line", **details))
    assert type(error) is cls
    assert str(error) == "what happened: ünïcode\nand a second line"
    assert error.details == details


def test_a_class_from_elsewhere_comes_back_as_its_nearest_base(wire):
    class SomebodyElsesError(RolloutNotFoundError):
        reason = "SOMEBODY_ELSES"

    class Unnamed(ResourceExhaustedError):
        pass

    error = wire.raised(SomebodyElsesError("not here", rollout_id="r"))
    assert type(error) is InvalidArgumentError
    assert (str(error), error.details) == ("not here", {"rollout_id": "r"})
    assert type(wire.raised(Unnamed("full"))) is ResourceExhaustedError


def test_a_field_at_fault_is_in_bad_request():
    status = Status.FromString(to_status(InvalidArgumentError("bad", field="rollouts[3].mode")).trailing_metadata[0][1])
    violations = BadRequest()
    assert any(detail.Unpack(violations) for detail in status.details)
    assert violations.field_violations[0].field == "rollouts[3].mode"


@pytest.mark.parametrize("seconds", [None, 0.0, 2.5])
def test_when_to_try_again_survives(wire, seconds):
    error = ResourceExhaustedError("full")
    error.retry_after_seconds = seconds
    assert wire.raised(error).retry_after_seconds == seconds


def test_a_validation_error_names_the_field_and_not_the_value(wire):
    with pytest.raises(ValidationError) as caught:
        EnqueueRolloutRequest.model_validate({"input": 1, "mode": "SECRET", "config": {"max_attempts": 0}})
    error = wire.raised(caught.value)
    assert type(error) is InvalidArgumentError
    assert str(error).startswith("mode: ")
    assert "config.max_attempts: " in str(error)
    assert "SECRET" not in str(error)
    assert error.details == {"field": "mode"}


def test_a_validation_error_without_a_field(wire):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(int).validate_python("x")
    assert wire.raised(caught.value).details == {}


def test_plain_value_and_type_errors_of_a_store_are_the_callers(wire):
    assert type(wire.raised(ValueError("no such thing"))) is InvalidArgumentError
    assert type(wire.raised(TypeError("not text"))) is InvalidTypeError
    assert str(wire.raised(ValueError())) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "error", [KeyError("SECRET"), OSError("SECRET"), InternalError("SECRET"), AssertionError("SECRET")]
)
def test_a_fault_of_the_server_shows_an_incident_id_and_nothing_else(wire, error):
    status = to_status(error)
    assert status.code is grpc.StatusCode.INTERNAL
    assert status.incident_id
    shown = wire.raised(error)
    assert type(shown) is InternalError
    assert "SECRET" not in repr(shown) + repr(shown.details)
    assert shown.details["incident_id"] in str(shown)


def test_only_faults_of_the_server_have_an_incident():
    assert to_status(ValueError("x")).incident_id is None
    assert to_status(InternalError("as told", incident_id="i-1")).incident_id == "i-1"


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "\x00\n\t%" * 50_000, "\ud800" * 10_000, "   "])
def test_what_is_too_long_for_headers_is_cut(wire, text):
    error = wire.raised(RolloutNotFoundError(text, field=text, rollout_id=text, attempt_id=text))
    assert type(error) is RolloutNotFoundError
    assert str(error)
    assert "field" in error.details


# --- Statuses that are not the server's own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, StoreUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, StoreTimeoutError),
        (grpc.StatusCode.CANCELLED, CallCancelledError),
        (grpc.StatusCode.UNIMPLEMENTED, UnsupportedError),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (grpc.StatusCode.NOT_FOUND, InvalidArgumentError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgumentError),
        (grpc.StatusCode.ABORTED, StoreError),
    ],
)
def test_a_bare_status_is_mapped_by_its_code(wire, code, cls):
    wire.failure = GrpcStatus(code, "said by a proxy")
    error = wire.error()
    assert type(error) is cls
    assert error.details == {}


def test_a_reason_of_another_domain_counts_for_nothing(wire):
    status = to_status(RolloutNotFoundError("x"))
    [(_, details)] = status.trailing_metadata
    assert isinstance(details, bytes)
    foreign = details.replace(b"lightning-store", b"somebody-elses!")
    wire.failure = GrpcStatus(status.code, status.message, (("grpc-status-details-bin", foreign),))
    assert type(wire.error()) is InvalidArgumentError


@pytest.mark.parametrize("garbage", [b"", b"\xff\xff\xff", b"\x08\x05\x12\x05other"])
def test_details_that_make_no_sense_are_ignored(wire, garbage):
    wire.failure = GrpcStatus(grpc.StatusCode.UNAVAILABLE, "down", (("grpc-status-details-bin", garbage),))
    error = wire.error()
    assert type(error) is StoreUnavailableError
    assert "down" in str(error)


def test_an_unknown_method(wire):
    assert type(wire.error("/test.Service/Nonsense")) is UnsupportedError


def test_a_message_that_the_server_refuses_for_its_size(wire):
    error = wire.error(payload=b"x" * 5000)
    assert type(error) is MessageTooLargeError
    assert error.details == {"size_bytes": "5000", "limit_bytes": "1000"}
    assert "--max-message-bytes" in str(error)
    assert "max_message_bytes" in str(error)


def test_a_message_that_the_channel_refuses_for_its_size(wire):
    options = [("grpc.max_send_message_length", 10)]
    with grpc.insecure_channel(f"127.0.0.1:{wire.port}", options) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, "/test.Service/Call", b"x" * 11)
    assert type(from_rpc_error(caught.value)) is MessageTooLargeError


def test_a_server_that_is_not_there():
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, "/test.Service/Call", b"")
    error = from_rpc_error(caught.value)
    assert type(error) is StoreUnavailableError
    assert str(error).startswith("The server cannot be reached")


def test_an_error_of_grpc_without_a_status():
    assert type(from_rpc_error(grpc.RpcError("odd"))) is InternalError


# --- Outcomes of single spans ----------------------------------------------------------------------------------------


def outcome_message(outcome):
    message = span_pb2.SpanOutcome()
    write_span_outcome(message, outcome)
    return span_pb2.SpanOutcome.FromString(message.SerializeToString())


@pytest.mark.parametrize("cls", every_class())
def test_every_rejection_comes_back_as_its_class(cls):
    error = cls("refused", rollout_id="r", incident_id="i")
    message = outcome_message(error)
    found = span_outcome_from_proto(message, "outcomes[0]")
    assert isinstance(found, StoreError)
    assert type(found) is cls
    assert (str(found), found.details) == ("refused", error.details)


def test_other_outcomes():
    assert span_outcome_from_proto(outcome_message(0), "o") == 0
    assert span_outcome_from_proto(outcome_message(7), "o") == 7
    assert span_outcome_from_proto(outcome_message(None), "o") is None
    with pytest.raises(InvalidArgumentError, match=r"^outcomes\[2\]\.outcome is missing"):
        span_outcome_from_proto(span_pb2.SpanOutcome(), "outcomes[2]")


def test_a_rejection_for_a_fault_of_the_server_keeps_it_to_itself():
    message = outcome_message(KeyError("SECRET"))
    assert message.rejected.reason == "INTERNAL"
    assert "SECRET" not in str(message)
