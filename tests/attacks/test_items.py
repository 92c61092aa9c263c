"""Requests of little size and many items: what the parsing, the working and the answering of one takes is bounded."""

from __future__ import annotations

import pytest

from tests.attacks.target import MIB, Bystander, Target, call, piece

pytestmark = pytest.mark.slow

COUNT = 300_000
REQUESTS = {
    "EnqueueRollouts": piece(1, b"enqueue") + piece(2, b"") * COUNT,
    "AllocateSpanSequenceIds": piece(1, b"allocate") + piece(2, b"") * COUNT,
    "AddSpans": piece(1, b"add") + piece(2, b"") * COUNT,
    "CancelRollouts": piece(1, b"cancel") + piece(2, b"a") * COUNT,
    "DeleteRollouts": piece(1, b"delete") + piece(2, piece(1, b"a") * COUNT),
    "WaitForRollouts": piece(1, b"a") * COUNT,
    "ListRollouts": piece(2, piece(1, b"a") * COUNT),
    "ImportRollouts": piece(1, b"import") + piece(2, b"") * COUNT,
    "DeleteWorkers": piece(1, b"workers") + piece(2, b"a") * COUNT,
}


def test_a_request_of_too_many_items_is_refused_before_it_is_parsed(target: Target) -> None:
    with Bystander(target) as bystander, target.raw() as channel:
        for method, request in REQUESTS.items():
            code, message = call(channel, method, request)
            print(method, len(request), code, message)
            assert code == "INVALID_ARGUMENT"
            assert "10000" in message
    assert bystander.grown_bytes < 100 * MIB
