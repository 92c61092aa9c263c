"""Messages that nobody would write, for every method: the server answers each, stays well, and its data stay sound.

The messages are made from the descriptors of the API, so that a new field or method is covered as it appears. Ids of
what is stored are mixed in, for the calls to get past the checks at the door.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lightning_store import LLM, InMemoryLightningStore
from lightning_store.lifecycle import QUEUED
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.testing.contract.base import make_span, retrying
from lightning_store.v1 import service_pb2
from lightning_store.v1.session_pb2 import SessionCall, SessionRequest
from lightning_store.wire.methods import METHODS

DEPTH_MAX = 6
FOLLOW_SECONDS = 0.1
"""How long a feed is followed that has no end."""
LEGAL = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}
SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]

# --- Values ----------------------------------------------------------------------------------------------------------


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any], one_in: int = 8) -> st.SearchStrategy[Any]:
    """Few odd values: a message of many fields is all wrong otherwise."""
    return st.integers(1, one_in).flatmap(lambda number: odd if number == one_in else usual)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ODD_TEXTS = st.one_of(
    JSON_VALUES.map(json.dumps),
    st.sampled_from(["null", "{", "", "[" * 5000, "1e999", '"\\ud800"', "[" * 150 + "]" * 150, "1" * 5000]),
    TEXTS,
)
JSON_TEXTS = mostly(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=3).map(json.dumps), ODD_TEXTS)
RESOURCES = ['{"resource_type": "llm", "endpoint": "e", "model": "m"}', '{"resource_type": "new", "x": [1, "\\ud800"]}']
RESOURCE_TEXTS = mostly(st.sampled_from(RESOURCES), JSON_TEXTS)
MEMBERS = [
    "name",
    "trace_id",
    "parent_id",
    "start_time",
    "attributes",
    "events",
    "status",
    "extra",
    "context",
    "resource",
]
MEMBER_VALUES = st.dictionaries(st.sampled_from(MEMBERS), JSON_VALUES, max_size=2)
FIELDS = [
    *("input_json", "mode", "resources_id", "status", "config", "metadata_json", "worker_id", "last_heartbeat_time"),
    *("rollout_id", "sequence_id", "start_time", "end_time", "version", "name", "*", "config.timeout"),
]
EXTREMES = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
NUMBERS = {
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_FIXED32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FIXED64: "uint64",
}


def integers(kind: str) -> st.SearchStrategy[int]:
    least, most = EXTREMES[kind]
    return mostly(st.integers(0, 10), st.sampled_from([least, most]) | st.integers(least, most), one_in=4)


class Known:
    """Ids of what is stored."""

    def __init__(self, ids: dict[str, list[str]], attempts: dict[str, str]) -> None:
        self.ids = ids
        self.attempts = attempts
        """An attempt of each rollout that has one."""

    def texts(self, field: str) -> st.SearchStrategy[str]:
        kind = field.removesuffix("s")
        if kind not in self.ids:
            return TEXTS
        known = st.integers(0, 1000).map(lambda number: self.ids[kind][number % len(self.ids[kind])])
        return mostly(known, TEXTS)


class Messages:
    """A strategy for each message type, from its descriptor."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def of(self, descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
        message_type = GetMessageClass(descriptor)
        if depth >= DEPTH_MAX:
            return st.just(message_type())
        optional = {field.name: self._field(field, depth) for field in descriptor.fields}
        required = {name: optional.pop(name) for name in self._usual(descriptor) if name in optional}
        drawn = st.tuples(st.fixed_dictionaries(required, optional=optional), st.integers(0, 7))
        return drawn.map(lambda pair: self._build(message_type, pair[0], matching=pair[1] > 0))

    def _build(self, message_type: type[Message], fields: dict[str, Any], matching: bool) -> Message:
        """The message; with ``matching``, its attempt is one of its rollout."""
        if (
            matching
            and fields.get("rollout_id") in self.known.attempts
            and "attempt_id" in message_type.DESCRIPTOR.fields_by_name
        ):
            fields.pop("latest", None)
            fields["attempt_id"] = self.known.attempts[fields["rollout_id"]]
        return message_type(**fields)

    def _usual(self, descriptor: Descriptor) -> list[str]:
        """Fields without which little happens; they are there in most messages."""
        usual = ["request_id", "consumer", "run", "rollout_id", "attempt_id", "span_id", "trace_id", "document_json"]
        return [field.name for field in descriptor.fields if field.name in usual]

    def _field(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return st.dictionaries(TEXTS, RESOURCE_TEXTS, max_size=2)
        one = self._value(field, depth)
        return st.lists(one, max_size=3) if field.default_value == [] else one  # repeated

    def _value(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        if field.message_type is not None:
            return self.of(field.message_type, depth + 1)
        if field.enum_type is not None:
            return mostly(st.sampled_from([value.number for value in field.enum_type.values]), integers("int32"))
        if field.type == FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return st.floats()
        if field.type == FieldDescriptor.TYPE_BYTES:
            size = {"trace_id": 16}.get(field.name, 8)
            return mostly(st.binary(min_size=size, max_size=size), st.binary(max_size=20))
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._text(field)
        return integers(NUMBERS[field.type])

    def _documents(self) -> st.SearchStrategy[str]:
        """Documents of spans, most of them of an attempt that there is."""
        owners = st.sampled_from(sorted(self.known.attempts.items()))
        ids = st.integers(0, 50).map(lambda number: {"trace_id": "ab" * 16, "span_id": f"{number:016x}", "name": "s"})
        return st.builds(
            lambda owner, span, members: json.dumps(
                {"rollout_id": owner[0], "attempt_id": owner[1], **span, **members}
            ),
            owners,
            ids,
            mostly(st.just({}), MEMBER_VALUES, one_in=3),
        )

    def _text(self, field: FieldDescriptor) -> st.SearchStrategy[str]:
        name, owner = field.name, field.containing_type.full_name
        if name == "document_json":
            return mostly(self._documents(), JSON_TEXTS)
        if name.endswith("_json"):
            return JSON_TEXTS
        if name == "paths":
            return mostly(st.sampled_from(FIELDS), TEXTS)
        if name == "sort_by":
            return mostly(st.sampled_from(FIELDS), TEXTS)
        if name == "page_token":
            return mostly(st.integers(0, 20).map(str), TEXTS)
        if name == "values" and owner.endswith("StringSet"):
            return self.known.texts("rollout_id")
        if name == "request_id":
            fresh = st.builds(lambda: uuid.uuid4().hex)
            return mostly(fresh, mostly(st.just("again"), TEXTS), one_in=4)
        return self.known.texts(name)


# --- The server, and what must hold of its data ----------------------------------------------------------------------


async def _fill(store: InMemoryLightningStore) -> Known:
    attempted = [await store.start_rollout(n, config=retrying(3), worker_id=f"w{n}") for n in range(3)]
    queued = [await store.enqueue_rollout(n) for n in range(3)]
    for rollout in attempted:
        await store.add_span(make_span(rollout))
    await store.enqueue_rollout(3, group_id="group", metadata={"lightning.run": "run"})
    await store.mark_consumed("trainer", [queued[0].rollout_id], checkpoint="step-1")
    resources = [await store.add_resources({"llm": LLM(endpoint="e", model="m")}) for _ in range(2)]
    ids = {
        "rollout_id": [rollout.rollout_id for rollout in [*attempted, *queued]],
        "attempt_id": [rollout.attempt.attempt_id for rollout in attempted],
        "resources_id": [one.resources_id for one in resources],
        "worker_id": [f"w{n}" for n in range(4)],
        "consumer": ["trainer"],
        "checkpoint": ["step-1"],
        "run": ["run"],
        "group_id": ["group"],
    }
    return Known(ids, {rollout.rollout_id: rollout.attempt.attempt_id for rollout in attempted})


def code_and_details(error: Any) -> tuple[grpc.StatusCode, str]:
    return error.code(), error.details()


class Fuzzed:
    """The server under fire."""

    def __init__(self, serve: Any) -> None:
        # The clock stands still: no deadline passes while the data are looked at, and waits end at once.
        self.store = InMemoryLightningStore(clock=FakeClock())
        self.messages = Messages(asyncio.run(_fill(self.store)))
        self.served = serve(self.store, wait_seconds_max=1e-9, page_rows_max=5, page_bytes_max=500)

    def send(self, rpc: str, message: Message) -> str:
        """The name of the status."""
        follows = rpc in ("WatchRollouts", "WatchGroups")
        try:
            reply = getattr(self.served.stub, rpc)(message, timeout=FOLLOW_SECONDS if follows else SAFETY_SECONDS)
            if METHODS[rpc].streams:
                list(reply)
        except grpc.RpcError as error:
            code, said = code_and_details(error)
        else:
            return "OK"
        if follows and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "OK"
        assert code in LEGAL, f"{rpc}: {code}, {said}"
        return code.name

    def send_together(self, calls: list[tuple[str, Message]]) -> None:
        """In one message of a session. Each is answered, as it may be by itself."""
        made = [
            SessionCall(id=number, method=rpc, request=message.SerializeToString())
            for number, (rpc, message) in enumerate(calls)
        ]
        stream = self.served.stub.Session(iter([SessionRequest(calls=made)]), timeout=SAFETY_SECONDS)
        replies = [reply for response in stream for reply in response.replies]
        assert sorted(reply.id for reply in replies) == list(range(len(calls)))
        legal = {0, *(code.value[0] for code in LEGAL)}
        for reply in replies:
            rpc = calls[reply.id][0]
            expected = {grpc.StatusCode.UNIMPLEMENTED.value[0]} if METHODS[rpc].streams else legal
            assert reply.error.code in expected, f"{rpc}: {reply.error}"

    async def check(self) -> None:
        """Statistics tell what the lists show, each list can be read whole, and who is queued can be claimed once."""
        store = self.store
        rollouts = await store.query_rollouts()
        attempts = [len(await store.query_attempts(rollout.rollout_id)) for rollout in rollouts]
        spans = [len(await store.query_spans(rollout.rollout_id)) for rollout in rollouts]
        statistics = await store.statistics()
        assert statistics["total_rollouts"] == len(rollouts)
        assert statistics["total_attempts"] == sum(attempts)
        assert statistics["total_spans"] == sum(spans)
        assert statistics["total_resources"] == len(await store.query_resources())
        assert statistics["total_workers"] == len(await store.query_workers())
        for admission in await store.query_admissions():
            await store.set_admission(admission.run)  # so that nobody is held
        queued = Counter(rollout.rollout_id for rollout in rollouts if rollout.status in QUEUED)
        claimed = await store.dequeue_many_rollouts(limit=len(rollouts) + 1)
        assert Counter(rollout.rollout_id for rollout in claimed) == queued
        for rollout in claimed:
            assert rollout.attempt.sequence_id == len(await store.query_attempts(rollout.rollout_id))


@pytest.fixture
def fuzzed(serve: Any) -> Fuzzed:
    return Fuzzed(serve)


FUZZ = settings(
    max_examples=max(60, settings.default.max_examples),  # of fewer, not one may be legal
    database=None,
    phases=[Phase.generate],  # the server remembers: a call may fail only after others, and cannot be made smaller
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("rpc", METHODS)
def test_any_message_gets_an_answer(fuzzed: Fuzzed, rpc: str) -> None:
    seen: Counter[str] = Counter()

    @FUZZ
    @given(fuzzed.messages.of(SERVICE.methods_by_name[rpc].input_type))
    def fire(message: Message) -> None:
        seen[fuzzed.send(rpc, message)] += 1

    fire()
    assert fuzzed.served.health() == "SERVING"
    asyncio.run(fuzzed.check())
    assert seen["OK"] > 0, f"none of the messages got past the checks: {seen}"


def calls_of(fuzzed: Fuzzed, rpcs: list[str]) -> st.SearchStrategy[list[tuple[str, Message]]]:
    one_call = st.sampled_from(rpcs).flatmap(
        lambda rpc: st.tuples(st.just(rpc), fuzzed.messages.of(SERVICE.methods_by_name[rpc].input_type))
    )
    return st.lists(one_call, min_size=3, max_size=6)


def test_any_sequence_of_calls_leaves_the_data_sound(fuzzed: Fuzzed) -> None:
    @FUZZ
    @given(calls_of(fuzzed, sorted(METHODS)))
    def fire(calls: list[tuple[str, Message]]) -> None:
        for rpc, message in calls:
            fuzzed.send(rpc, message)
        asyncio.run(fuzzed.check())

    fire()
    assert fuzzed.served.health() == "SERVING"


def test_any_calls_of_a_session_leave_the_data_sound(fuzzed: Fuzzed) -> None:
    @FUZZ
    @given(calls_of(fuzzed, sorted(METHODS)))
    def fire(calls: list[tuple[str, Message]]) -> None:
        fuzzed.send_together(calls)
        asyncio.run(fuzzed.check())

    fire()
    assert fuzzed.served.health() == "SERVING"


def test_any_message_on_a_session_is_answered_or_ends_it(fuzzed: Fuzzed) -> None:
    sessions = st.lists(fuzzed.messages.of(SessionRequest.DESCRIPTOR), max_size=4)

    @FUZZ
    @given(sessions)
    def fire(requests: list[Message]) -> None:
        stream = fuzzed.served.stub.Session(iter(requests), timeout=SAFETY_SECONDS)
        try:
            for _ in stream:
                pass
        except grpc.RpcError as error:
            code, said = code_and_details(error)
            assert code is grpc.StatusCode.INVALID_ARGUMENT, said

    fire()
    assert fuzzed.served.health() == "SERVING"
