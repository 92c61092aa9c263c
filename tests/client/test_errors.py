"""A call raises over the wire what the store raises in process."""

from __future__ import annotations

import asyncio
import math

import pytest
from pydantic import ValidationError

from lightning_store import (
    LLM,
    EnqueueRolloutRequest,
    InMemoryLightningStore,
    RolloutConfig,
    StoreError,
)
from lightning_store.errors import (
    AttemptNotFoundError,
    InternalError,
    InvalidArgumentError,
    InvalidTypeError,
    MessageTooLargeError,
    NoAttemptsError,
    ResourceExhaustedError,
    RolloutNotFoundError,
    SpansRejectedError,
)
from lightning_store.model import AttemptUpdate
from lightning_store.testing.contract.base import make_span
from lightning_store.wire.errors import STATUS_CODES


def raising(error):
    async def hook(*_, **__):
        raise error

    return hook


def all_classes(root=StoreError):
    return [
        root,
        *(cls for child in root.__subclasses__() if child.__module__ == root.__module__ for cls in all_classes(child)),
    ]


def over_the_wire(make_rig, hooked, error):
    """What the client raises if the store raises ``error``."""
    rig = make_rig(hooked(InMemoryLightningStore(), get_rollout_by_id=raising(error)))

    async def scenario():
        with pytest.raises(StoreError) as caught:
            await rig.client(retry_delays=()).get_rollout_by_id("ro-1")
        return caught.value

    return asyncio.run(scenario())


def test_the_tree_here_is_the_whole_tree():
    assert set(all_classes()) == set(STATUS_CODES)


@pytest.mark.parametrize("cls", all_classes(), ids=lambda cls: cls.__name__)
def test_every_error_comes_as_the_class_that_the_store_raised(make_rig, hooked, cls):
    error = cls(
        "Something is wrong: \u2603 \N{PILE OF POO} 100%\nline two", field="there", count="7", incident_id="i-1"
    )
    received = over_the_wire(make_rig, hooked, error)
    assert type(received) is cls
    assert type(received).__mro__ == type(error).__mro__
    assert received.details == error.details
    if cls is not InternalError:
        assert str(received) == str(error)


@pytest.mark.parametrize(
    "error",
    [RolloutNotFoundError.of("ro-1"), AttemptNotFoundError.of("ro-1", "at-1"), NoAttemptsError.of("ro-1")],
    ids=lambda error: type(error).__name__,
)
def test_not_found_keeps_its_words_and_ids(make_rig, hooked, error):
    received = over_the_wire(make_rig, hooked, error)
    assert (type(received), str(received), received.details) == (type(error), str(error), error.details)
    assert isinstance(received, ValueError)


def test_a_limit_says_when_to_come_back(make_rig, hooked):
    error = ResourceExhaustedError("busy")
    error.retry_after_seconds = 1.25
    received = over_the_wire(make_rig, hooked, error)
    assert isinstance(received, ResourceExhaustedError)
    assert received.retry_after_seconds == 1.25


def test_a_class_of_somebody_else_comes_as_its_nearest_base(make_rig, hooked):
    foreign = type("GoneError", (RolloutNotFoundError,), {"reason": "GONE"})
    assert isinstance(over_the_wire(make_rig, hooked, foreign("gone")), InvalidArgumentError)


@pytest.mark.parametrize(
    ("error", "cls"), [(ValueError("not so"), InvalidArgumentError), (TypeError("not this"), InvalidTypeError)]
)
def test_plain_errors_about_arguments_stay_what_they_are(make_rig, hooked, error, cls):
    received = over_the_wire(make_rig, hooked, error)
    assert type(received) is cls
    assert isinstance(received, type(error))
    assert str(received) == str(error)


def test_what_pydantic_refuses_is_a_value_error(make_rig, hooked):
    with pytest.raises(ValidationError) as caught:
        AttemptUpdate(status="odd")
    received = over_the_wire(make_rig, hooked, caught.value)
    assert isinstance(received, ValueError)
    assert "status" in str(received)


def test_a_failure_inside_the_server_is_an_internal_error_without_its_text(make_rig, hooked):
    received = over_the_wire(make_rig, hooked, RuntimeError("secret text"))
    assert type(received) is InternalError
    assert "secret" not in str(received)
    assert received.details["incident_id"] in str(received)


def test_very_long_messages_come_cut_and_very_many_details_do_no_harm(make_rig, hooked):
    error = RolloutNotFoundError("\u2603" * 100_000, **{f"detail_{n}": "x" * 1000 for n in range(100)})
    received = over_the_wire(make_rig, hooked, error)
    assert type(received) is RolloutNotFoundError
    assert str(received).startswith("\u2603\u2603")


@pytest.mark.parametrize("limited", ["client", "server"])
def test_a_request_that_is_too_large_says_the_limit_and_what_to_do(make_rig, limited):
    rig = make_rig(**({"max_message_bytes": 2000} if limited == "server" else {}))
    client = rig.client(**({"max_message_bytes": 2000} if limited == "client" else {}))

    async def scenario():
        with pytest.raises(MessageTooLargeError, match="send less at.*--max-message-bytes") as caught:
            await client.enqueue_many_rollouts([EnqueueRolloutRequest(input="x" * 100)] * 100)
        assert caught.value.details["limit_bytes"] == "2000"
        assert int(caught.value.details["size_bytes"]) > 10_000
        assert (await rig.store.statistics())["total_rollouts"] == 0

    asyncio.run(scenario())


# --- Mistakes, the same in process and through the client ------------------------------------------------------------

MISTAKES = {
    "unknown rollout": lambda store, ro: store.update_rollout("ro-no", metadata={}),
    "unknown rollout for an attempt": lambda store, ro: store.start_attempt("ro-no"),
    "unknown attempt": lambda store, ro: store.update_attempt(ro.rollout_id, "at-no", status="running"),
    "unknown rollout for a number": lambda store, ro: store.get_next_span_sequence_id("ro-no", "at"),
    "unknown mode": lambda store, ro: store.enqueue_rollout(1, mode="odd"),
    "unknown rollout status": lambda store, ro: store.update_rollout(ro.rollout_id, status="odd"),
    "no rollout status": lambda store, ro: store.update_rollout(ro.rollout_id, status=None),
    "unknown attempt status": lambda store, ro: store.update_attempt(ro.rollout_id, "latest", status="odd"),
    "no config": lambda store, ro: store.update_rollout(ro.rollout_id, config=None),
    "config changed by hand": lambda store, ro: store.enqueue_rollout(1, config=changed_by_hand()),
    "input that is not JSON": lambda store, ro: store.enqueue_rollout({"a": [object()]}),
    "metadata that are not JSON": lambda store, ro: store.enqueue_rollout(1, metadata={"a": {1, 2}}),
    "metadata that are no mapping": lambda store, ro: store.update_rollout(ro.rollout_id, metadata=[1]),
    "keys that are no text": lambda store, ro: store.update_attempt(ro.rollout_id, "latest", metadata={"a": {1: 2}}),
    "no heartbeat stats": lambda store, ro: store.update_worker("w", None),
    "heartbeat stats that are not JSON": lambda store, ro: store.update_worker("w", {"a": b"bytes"}),
    "empty worker": lambda store, ro: store.update_worker(""),
    "resources that are none": lambda store, ro: store.add_resources({"llm": 5}),
    "resources that are no mapping": lambda store, ro: store.add_resources([LLM(endpoint="e", model="m")]),
    "resources without a type": lambda store, ro: store.add_resources({"llm": {"endpoint": "e"}}),
    "span of an unknown rollout": lambda store, ro: store.add_span(make_span(ro, rollout_id="ro-no")),
    "span of an unknown attempt": lambda store, ro: store.add_span(make_span(ro, attempt_id="at-no")),
    "span that is not JSON": lambda store, ro: store.add_span(make_span(ro, attributes={"a": object()})),
    "spans of unknown rollouts": lambda store, ro: store.add_many_spans(
        [make_span(ro), make_span(ro, rollout_id="no")]
    ),
    "negative limit": lambda store, ro: store.query_rollouts(limit=-2),
    "negative offset": lambda store, ro: store.query_spans(ro.rollout_id, offset=-1),
    "unknown field to sort by": lambda store, ro: store.query_workers(sort_by="odd"),
    "field without order": lambda store, ro: store.query_rollouts(sort_by="input"),
    "unknown order": lambda store, ro: store.query_attempts(ro.rollout_id, sort_order="up"),
    "unknown logic": lambda store, ro: store.query_spans(ro.rollout_id, filter_logic="xor"),
    "unknown status to filter by": lambda store, ro: store.query_rollouts(status_in=["odd"]),
    "text for a list": lambda store, ro: store.query_rollouts(rollout_id_in="ro-1"),
    "no number of seconds": lambda store, ro: store.wait_for_rollouts(rollout_ids=[ro.rollout_id], timeout=math.nan),
    "number for a filter": lambda store, ro: store.query_spans(ro.rollout_id, name_contains=5),
}


def changed_by_hand():
    config = RolloutConfig()
    config.max_attempts = 0
    return config


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_the_same_kind_of_error_in_process_and_through_the_client(rig, name):
    async def scenario():
        rollout = await rig.store.start_rollout("task", worker_id="w")
        with pytest.raises((ValueError, TypeError)) as in_process:
            await MISTAKES[name](rig.store, rollout)
        client = rig.client()
        with pytest.raises((ValueError, TypeError)) as through_client:
            await MISTAKES[name](client, rollout)
        for kind in (ValueError, TypeError):
            assert isinstance(through_client.value, kind) == isinstance(in_process.value, kind)
        if isinstance(in_process.value, StoreError):
            assert type(through_client.value) is type(in_process.value)
            assert through_client.value.details.get("rollout_id") == in_process.value.details.get("rollout_id")
        if isinstance(in_process.value, SpansRejectedError) and isinstance(through_client.value, SpansRejectedError):
            assert [(one.index, type(one.error)) for one in through_client.value.rejected] == [
                (one.index, type(one.error)) for one in in_process.value.rejected
            ]
        statistics = await rig.store.statistics()
        assert (statistics["total_rollouts"], statistics["total_attempts"], statistics["total_workers"]) == (1, 1, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "method",
    [
        *("get_rollout_by_id", "get_latest_attempt", "get_resources_by_id", "get_worker_by_id"),
        *("query_attempts", "query_spans", "start_attempt", "update_rollout", "update_worker"),
    ],
)
def test_an_empty_id_is_refused_alike(rig, method):
    async def scenario():
        with pytest.raises(InvalidArgumentError) as in_process:
            await getattr(rig.store, method)("")
        with pytest.raises(InvalidArgumentError) as through_client:
            await getattr(rig.client(), method)("")
        assert through_client.value.details == in_process.value.details

    asyncio.run(scenario())
