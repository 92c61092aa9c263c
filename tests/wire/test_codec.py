"""Each model through its message and the message's bytes; and what is malformed is refused with its path."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from lightning_store.errors import InvalidArgumentError, NotJsonError
from lightning_store.model import LLM, EnqueueRolloutRequest, Resource, RolloutConfig, RolloutStatus
from lightning_store.store import LightningStoreCapabilities, LightningStoreStatistics
from lightning_store.testing import strategies
from lightning_store.v1 import resources_pb2, rollout_pb2, server_pb2, worker_pb2
from lightning_store.wire import codec
from tests.wire.same import assert_same, through_bytes


@given(strategies.rollouts())
def test_rollout(rollout):
    assert_same(codec.rollout_from_proto(through_bytes(codec.rollout_to_proto(rollout)), "rollout"), rollout)


@given(strategies.attempted_rollouts())
def test_attempted_rollout(rollout):
    message = through_bytes(codec.rollout_to_proto(rollout))
    assert_same(codec.rollout_from_proto(message, "rollout"), rollout)
    assert_same(codec.attempted_rollout_from_proto(message, "rollout"), rollout)


@given(strategies.attempts())
def test_attempt(attempt):
    assert_same(codec.attempt_from_proto(through_bytes(codec.attempt_to_proto(attempt)), "attempt"), attempt)


@given(strategies.rollout_configs())
def test_config(config):
    assert_same(codec.config_from_proto(through_bytes(codec.config_to_proto(config)), "config"), config)


@given(strategies.resources_updates())
def test_resources(resources):
    message = through_bytes(codec.resources_to_proto(resources))
    assert_same(codec.resources_from_proto(message, "resources"), resources)


@given(strategies.workers())
def test_worker(worker):
    assert_same(codec.worker_from_proto(through_bytes(codec.worker_to_proto(worker)), "worker"), worker)


_COUNTS = [
    "total_rollouts",
    "total_attempts",
    "total_spans",
    "total_resources",
    "total_workers",
    "total_span_bytes",
    "eviction_threshold_bytes",
    "safe_threshold_bytes",
    "memory_capacity_bytes",
    "total_bytes",
    "memory_limit_bytes",
    "disk_used_bytes",
    "disk_file_bytes",
    "disk_free_bytes",
    "disk_limit_bytes",
    "completed_last_minute",
    "rejected_spans",
]


@given(
    st.fixed_dictionaries(
        {"rollouts_by_status": st.dictionaries(st.sampled_from(get_args(RolloutStatus)), strategies.counters())},
        optional={
            "name": strategies.texts(),
            "uptime": strategies.durations(),
            "oldest_queued_time": strategies.times(),
            **dict.fromkeys(_COUNTS, strategies.counters()),
        },
    )
)
def test_statistics(statistics):
    message = through_bytes(codec.statistics_to_proto(statistics))
    assert_same(codec.statistics_from_proto(message), statistics)


def test_statistics_have_a_field_for_each_name():
    names = {*_COUNTS, "name", "uptime", "oldest_queued_time", "rollouts_by_status"}
    assert {field.name for field in server_pb2.GetStatisticsResponse.DESCRIPTOR.fields} == names
    assert LightningStoreStatistics.__annotations__.keys() == names


def test_server_info():
    info = codec.ServerInfo(
        version="1.2",
        strict=True,
        capabilities=LightningStoreCapabilities(thread_safe=True, async_safe=True, zero_copy=False, otlp_traces=False),
        message_bytes_max=2**26,
        page_rows_max=1000,
        page_bytes_max=2**25,
        wait_seconds_max=20.0,
        replay_window_seconds=0.5,
    )
    assert codec.server_info_from_proto(through_bytes(codec.server_info_to_proto(info))) == info


def test_none_is_absent_and_differs_from_empty():
    message = codec.new_rollout_to_proto(EnqueueRolloutRequest(input=None, resources_id="", metadata={}))
    assert not message.HasField("input_json")
    assert message.HasField("resources_id")
    assert message.metadata_json == "{}"
    assert message.resources_id == ""


def test_numbers_keep_their_kind():
    value = [7, 7.0, 12345678901234567, True, math.inf, -math.inf]
    message = codec.new_rollout_to_proto(EnqueueRolloutRequest(input=value))
    assert message.input_json == "[7,7.0,12345678901234567,true,Infinity,-Infinity]"


def test_an_unknown_resource_type_keeps_its_fields():
    resource = Resource.model_validate({"resource_type": "weights", "shape": [2, 3]})
    texts = codec.named_resources_to_proto({"w": resource, "llm": LLM(endpoint="http://x", model="m")})
    found = codec.named_resources_from_proto(texts, "resources_json")
    assert_same(found["w"], resource)
    assert type(found["llm"]) is LLM


def test_what_is_not_json_is_refused_with_its_place():
    with pytest.raises(NotJsonError) as caught:
        codec.new_rollout_to_proto(EnqueueRolloutRequest(input={"a": [1, object()]}), "rollouts[1].")
    assert caught.value.details["path"] == "rollouts[1].input.a[1]"


def a_rollout(**fields):
    values = {"rollout_id": "r", "status": 1, "start_time": Timestamp(), "config": rollout_pb2.RolloutConfig()}
    return rollout_pb2.Rollout(**{**values, **fields})


def config_of(**fields):
    return rollout_pb2.RolloutConfig(**fields)


def an_attempt(**fields):
    values = {"rollout_id": "r", "attempt_id": "a", "status": 1, "start_time": Timestamp()}
    return rollout_pb2.Attempt(**{**values, **fields})


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (a_rollout(rollout_id=""), "m.rollout_id"),
        (a_rollout(start_time=None), "m.start_time"),
        (a_rollout(start_time=Timestamp(seconds=-1)), "m.start_time"),
        (a_rollout(config=None), "m.config"),
        (a_rollout(status=0), "m.status"),
        (a_rollout(status=99), "m.status"),
        (a_rollout(mode=4), "m.mode"),
        (a_rollout(input_json="{"), "m.input_json"),
        (a_rollout(metadata_json="[1]"), "m.metadata_json"),
        (a_rollout(config=rollout_pb2.RolloutConfig(max_attempts=0)), "m.config.max_attempts"),
        (a_rollout(config=rollout_pb2.RolloutConfig(timeout=Duration(seconds=-1))), "m.config.timeout"),
        (a_rollout(config=config_of(retry_condition=[3, 7])), "m.config.retry_condition[1]"),
        (a_rollout(latest_attempt=an_attempt(attempt_id="")), "m.latest_attempt.attempt_id"),
        (a_rollout(latest_attempt=an_attempt(sequence_id=-1)), "m.latest_attempt.sequence_id"),
        (a_rollout(latest_attempt=an_attempt(rollout_id="other")), "m.latest_attempt.rollout_id"),
    ],
)
def test_a_bad_rollout_is_refused_with_its_field(message, field):
    refused(lambda: codec.rollout_from_proto(message, "m"), field)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "m['x']"),
        ("7", "m['x']"),
        ("{}", "m['x'].resource_type"),
        ('{"resource_type": ["llm"]}', "m['x'].resource_type"),
        ('{"resource_type": ""}', "m['x'].resource_type"),
        ('{"resource_type": "llm", "endpoint": "e"}', "m['x'].model"),
        ('{"resource_type": "prompt_template", "template": "t", "engine": "mako"}', "m['x'].engine"),
    ],
)
def test_a_bad_resource_is_refused_with_its_field(text, field):
    refused(lambda: codec.named_resources_from_proto({"x": text}, "m"), field)


def test_other_bad_messages():
    refused(lambda: codec.worker_from_proto(worker_pb2.Worker(worker_id="w"), "m"), "m.status")
    refused(lambda: codec.resources_from_proto(resources_pb2.Resources(resources_id="r"), "m"), "m.create_time")
    refused(lambda: codec.attempted_rollout_from_proto(a_rollout(), "m"), "m.latest_attempt")
    refused(lambda: codec.server_info_from_proto(server_pb2.GetServerInfoResponse()), "capabilities")


def test_validation_errors_do_not_repeat_the_value():
    with pytest.raises(InvalidArgumentError) as caught:
        codec.config_from_proto(rollout_pb2.RolloutConfig(max_attempts=-123456), "config")
    assert "123456" not in str(caught.value)
    assert RolloutConfig().max_attempts == 1


def refused(call, field):
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    assert caught.value.details["field"] == field
    assert str(caught.value).startswith(field)
