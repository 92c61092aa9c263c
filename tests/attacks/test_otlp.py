"""Spans over OTLP: what a request takes does not depend on what its sender made of few bytes."""

from __future__ import annotations

import gzip
import http.client

import pytest

from lightning_store.wire.methods import TRACE_EXPORT
from tests.attacks.target import MIB, Bystander, Target, call, piece

pytestmark = pytest.mark.slow

SPANS = 5_000_000


def nested(content: bytes, *numbers: int) -> bytes:
    for number in reversed(numbers):
        content = piece(number, content)
    return content


def post(target: Target, body: bytes, content_type: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", target.http_port, timeout=60)
    try:
        connection.request("POST", "/v1/traces", body, {"Content-Type": content_type, **headers})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def spans() -> bytes:
    """Five million empty spans."""
    return nested(piece(2, b"") * SPANS, 1, 2)


def test_empty_spans_that_were_compressed(target: Target, spans: bytes) -> None:
    compressed = gzip.compress(spans)
    assert len(compressed) < 20_000
    with Bystander(target) as bystander:
        assert post(target, compressed, "application/x-protobuf", **{"Content-Encoding": "gzip"})[0] == 400
    assert bystander.grown_bytes < 100 * MIB


@pytest.mark.parametrize("element", [b"{}", b"[]"])
def test_empty_values_of_json(target: Target, element: bytes) -> None:
    body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + element + (b"," + element) * SPANS + b"]}]}]}"
    with Bystander(target) as bystander:
        status, _ = post(target, gzip.compress(body), "application/json", **{"Content-Encoding": "gzip"})
        assert status == 400
    assert bystander.grown_bytes < 200 * MIB


def test_empty_spans_over_grpc(target: Target) -> None:
    body = nested(piece(2, b"") * (25 * MIB), 1, 2)
    with Bystander(target) as bystander, target.raw() as channel:
        assert call(channel, TRACE_EXPORT.path, body)[0] == "INVALID_ARGUMENT"
    assert bystander.grown_bytes < 300 * MIB


def test_spans_of_many_values(target: Target) -> None:
    values = nested(piece(1, b"") * (8 * MIB), 9, 2, 5)
    body = nested(values, 1, 2, 2)
    with Bystander(target) as bystander, target.raw() as channel:
        assert call(channel, TRACE_EXPORT.path, body)[0] == "OK"  # as a partial success
    assert bystander.grown_bytes < 300 * MIB
