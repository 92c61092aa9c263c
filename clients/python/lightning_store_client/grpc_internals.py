"""All that the client uses of gRPC beyond its public API: no other file names anything private of another package.

Each has its reason, and what is done where a release does not have it:

* ``Channel._channel``, ``segregated_call``, ``operate``, ``next_event`` and the operations: a stream whose messages a
  thread of ours sends and reads. The synchronous API has three threads of its own between a stream and its user, one
  after another for each message; ``grpc.aio`` does not survive forks, since its poller outlives every close. Without
  them each call is made by itself (``SessionUnsupported``).
* ``fork_register_channel`` and ``fork_unregister_channel``: gRPC's fork handler closes every channel in a child, and
  may wait there for a lock that nobody holds any more. Without them it does.
* ``Call._state``: from outside a reader that is about to ask gRPC for a reply looks like one that waits for it. Without
  it the reader is taken to wait.
* ``grpc._channel``, imported early: gRPC imports it with the first channel, and a fork in the middle leaves the child
  an import that is half done. Without it that may happen.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import grpc
from grpc.aio import AioRpcError, Metadata

from lightning_store.wire.errors import status_code

NO_FLAGS: Final = 0


def _import(name: str) -> Any:
    """The module, or one without any names."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return ModuleType(name)


_cygrpc = _import("grpc._cython.cygrpc")
_import("grpc._channel")


def hide_from_fork_handlers(channel: grpc.Channel) -> None:
    """Have gRPC's fork handlers leave the channel alone, for ever or until it is shown again. May be called again."""
    with contextlib.suppress(AttributeError):
        _cygrpc.fork_unregister_channel(channel)


def show_to_fork_handlers(channel: grpc.Channel) -> None:
    with contextlib.suppress(AttributeError):
        _cygrpc.fork_register_channel(channel)


def awaits_reply(call: Any) -> bool:
    """Whether gRPC has taken note that the reader of a stream waits for its next reply."""
    try:
        state = call._state
        with state.condition:
            return _cygrpc.OperationType.receive_message in state.due
    except AttributeError:
        return True


class MessageStream:
    """A call that carries serialized messages both ways. Any thread sends, and one reads.

    gRPC's synchronous API has three threads of its own between such a call and whoever uses it, one after another for
    each message and its reply. Here the sender hands a message to gRPC's core itself, and the reader waits for the core
    itself: two thirds of the latency, and half of the CPU.
    """

    def __init__(self, channel: grpc.Channel, method: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        """Begin the call of ``method``, "/service/Method". ValueError if the channel is closed; AttributeError or
        TypeError if this release of gRPC has not what it takes."""
        self._lock = threading.RLock()  # sending may be the work of a finalizer, in a thread that holds it
        opening = (
            _cygrpc.SendInitialMetadataOperation(metadata or None, NO_FLAGS),
            _cygrpc.ReceiveInitialMetadataOperation(NO_FLAGS),
            _cygrpc.ReceiveMessageOperation(NO_FLAGS),
            _cygrpc.ReceiveStatusOnClientOperation(NO_FLAGS),
        )
        self._due = len(opening)
        """Operations under way; the core forgets the call with the last of them."""
        core_channel: Any = channel._channel  # type: ignore[attr-defined]
        self._call = core_channel.segregated_call(
            _cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            method.encode(),
            None,
            None,
            (),
            None,
            [((operation,), None) for operation in opening],
        )

    def send(self, message: bytes) -> None:
        """Send ``message``. The next one may be sent when this one has gone, as ``run`` tells. Nothing happens if the
        call is over."""
        with self._lock:  # it counts before ``run`` sees its end
            self._due += self._call.operate((_cygrpc.SendMessageOperation(message, NO_FLAGS),), None)

    def run(self, take: Callable[[bytes], object], sent: Callable[[], object]) -> None:
        """Read until the call is over, in this thread: ``take`` gets each message that comes, and ``sent`` is called
        when one has gone. AioRpcError if the call fails."""
        status: Any = None
        initial: Any = ()
        while self._due:
            operations = self._call.next_event().batch_operations
            with self._lock:
                self._due -= 1
            for operation in operations:
                kind = operation.type()
                if kind == _cygrpc.OperationType.receive_message:
                    message = operation.message()
                    if message is not None:
                        take(message)
                        # Not under our lock: gRPC has one of its own, in which a finalizer may want to send.
                        begun = self._call.operate((_cygrpc.ReceiveMessageOperation(NO_FLAGS),), None)
                        with self._lock:
                            self._due += begun
                elif kind == _cygrpc.OperationType.receive_initial_metadata:
                    initial = operation.initial_metadata() or ()
                elif kind == _cygrpc.OperationType.send_message:
                    sent()
                elif kind == _cygrpc.OperationType.receive_status_on_client:
                    status = operation
        code = status_code(status.code())
        if code is not grpc.StatusCode.OK:
            trailing = Metadata.from_tuple(status.trailing_metadata())
            raise AioRpcError(
                code, Metadata.from_tuple(tuple(initial)), trailing, status.details(), status.error_string()
            )

    def cancel(self) -> None:
        """End the call, if it is not over: ``run`` then raises that it was cancelled."""
        self._call.cancel(_cygrpc.StatusCode.cancelled, "ended by the client")
