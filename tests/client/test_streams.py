"""A stream on gRPC's core, with a core that does what the test says."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError

from lightning_store.testing import SAFETY_SECONDS
from lightning_store_client import grpc_internals
from lightning_store_client.grpc_internals import MessageStream

NO_FLAGS = 0


cygrpc = grpc_internals._cygrpc


class Done:
    """An operation that has come to its end."""

    def __init__(self, kind, **results):
        self._kind = kind
        for name, value in results.items():
            setattr(self, name, lambda value=value: value)

    def type(self):
        return self._kind


SENT = Done(cygrpc.OperationType.send_message)
OPENED = [
    Done(cygrpc.OperationType.send_initial_metadata),
    Done(cygrpc.OperationType.receive_initial_metadata, initial_metadata=(("early", "1"),)),
]


def received(message):
    return Done(cygrpc.OperationType.receive_message, message=message)


def over(code=grpc.StatusCode.OK, details=""):
    status = {"code": code.value[0], "details": details, "trailing_metadata": (("key", "value"),), "error_string": ""}
    return Done(cygrpc.OperationType.receive_status_on_client, **status)


class Core:
    """A channel, and its only call. Each operation that is to end is in ``ends``, in order; it may not be asked for one
    more."""

    def __init__(self, *ends):
        self.ends = deque(ends)
        self.operations = []
        self.while_operating = lambda kind: None
        self._channel = self

    def segregated_call(self, *_):
        return self

    def operate(self, operations, tag):
        [operation] = operations
        self.while_operating(operation.type())
        if not self.ends:
            return False
        self.operations.append(operation.type())
        return True

    def next_event(self):
        return SimpleNamespace(batch_operations=[self.ends.popleft()])


def run(stream):
    taken, gone = [], []
    stream.run(taken.append, lambda: gone.append(True))
    return taken, len(gone)


def test_it_reads_until_all_that_was_begun_has_ended():
    core = Core(*OPENED, received(b"1"), SENT, received(b"2"), over(), received(None))
    stream = MessageStream(core, "/service/Method")
    stream.send(b"message")
    assert run(stream) == ([b"1", b"2"], 1)
    assert not core.ends


def test_a_message_for_a_call_that_is_over_is_nothing():
    core = Core(*OPENED, received(None), over())
    stream = MessageStream(core, "/service/Method")
    assert run(stream) == ([], 0)
    stream.send(b"too late")
    assert core.operations == []


def test_the_end_of_a_call_that_fails_is_its_status():
    core = Core(*OPENED, over(grpc.StatusCode.UNAVAILABLE, "down"), received(None))
    with pytest.raises(AioRpcError) as caught:
        run(MessageStream(core, "/service/Method"))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "down")
    trailing: Any = caught.value.trailing_metadata()
    assert trailing["key"] == "value"


def test_who_sends_does_not_wait_for_the_reader_to_ask_for_more():
    """gRPC's own lock may be held by whoever sends, for whom a finalizer does it, and wanted by the reader."""
    core = Core(*OPENED, received(b"1"), SENT, over(), received(None))
    stream = MessageStream(core, "/service/Method")
    sending = threading.Thread(target=stream.send, args=(b"message",))
    waited = []

    def send_meanwhile(kind):
        if kind == cygrpc.OperationType.receive_message:
            sending.start()
            sending.join(SAFETY_SECONDS)
            waited.append(sending.is_alive())

    core.while_operating = send_meanwhile
    assert run(stream) == ([b"1"], 1)
    assert waited == [False]
