"""Streaming calls, read by threads that can be made to leave gRPC while the process forks."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
from grpc.aio import AioRpcError, Metadata

from lightning_store.clock import SystemClock
from lightning_store.wire.errors import status_code

# gRPC's own, where it has no public way: calls of its core that a thread of ours reads, and whether a reader has told
# gRPC that it waits for a reply.
cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")

logger = logging.getLogger("lightning_store_client")

NO_FLAGS: Final = 0
LOOK_AGAIN_SECONDS: Final = 0.0005

_clock = SystemClock()
now = _clock.monotonic
"""What a fork waits for happens in threads, whatever clock the client was given."""


def warn_of_grpc(error: Exception) -> None:
    """What we use of gRPC's own is not as we know it."""
    logger.warning("grpcio %s does not let calls share a stream (%s); they are slower", grpc.__version__, error)


def wait_until(happened: Callable[[], bool], until: float) -> None:
    """Return when something has happened in another thread, at the time ``until`` at the latest."""
    pause = threading.Event()
    while not happened() and now() < until:
        pause.wait(LOOK_AGAIN_SECONDS)


class MessageStream:
    """A call that carries serialized messages both ways. Any thread sends, and one reads.

    gRPC's synchronous API has three threads of its own between such a call and whoever uses it, one after another for
    each message and its reply. Here the sender hands a message to gRPC's core itself, and the reader waits for the core
    itself: two thirds of the latency, and half of the CPU.
    """

    def __init__(self, channel: grpc.Channel, method: str) -> None:
        """Begin the call of ``method``, "/service/Method". ValueError if the channel is closed."""
        self._lock = threading.RLock()  # sending may be the work of a finalizer, in a thread that holds it
        opening = (
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            cygrpc.ReceiveInitialMetadataOperation(NO_FLAGS),
            cygrpc.ReceiveMessageOperation(NO_FLAGS),
            cygrpc.ReceiveStatusOnClientOperation(NO_FLAGS),
        )
        self._due = len(opening)
        """Operations under way; the core forgets the call with the last of them."""
        core_channel: Any = channel._channel  # type: ignore[attr-defined]
        self._call = core_channel.segregated_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
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
            self._due += self._call.operate((cygrpc.SendMessageOperation(message, NO_FLAGS),), None)

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
                if kind == cygrpc.OperationType.receive_message:
                    message = operation.message()
                    if message is not None:
                        take(message)
                        # Not under our lock: gRPC has one of its own, in which a finalizer may want to send.
                        begun = self._call.operate((cygrpc.ReceiveMessageOperation(NO_FLAGS),), None)
                        with self._lock:
                            self._due += begun
                elif kind == cygrpc.OperationType.receive_initial_metadata:
                    initial = operation.initial_metadata() or ()
                elif kind == cygrpc.OperationType.send_message:
                    sent()
                elif kind == cygrpc.OperationType.receive_status_on_client:
                    status = operation
        code = status_code(status.code())
        if code is not grpc.StatusCode.OK:
            trailing = Metadata.from_tuple(status.trailing_metadata())
            raise AioRpcError(
                code, Metadata.from_tuple(tuple(initial)), trailing, status.details(), status.error_string()
            )

    def cancel(self) -> None:
        """End the call, if it is not over: ``run`` then raises that it was cancelled."""
        self._call.cancel(cygrpc.StatusCode.cancelled, "ended by the client")


class Replies(Iterator[Any]):
    """The replies of a streaming call, for one reader.

    Before a fork gRPC waits for its own threads, and not for those that read. One that asks for a reply at that moment
    is inside gRPC, and what it holds locked there stays locked in the child for ever.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._may_ask = threading.Lock()
        self._asking = False

    def __next__(self) -> Any:
        with self._may_ask:
            self._asking = True
        try:
            return next(self._call)
        finally:
            self._asking = False

    @property
    def over(self) -> bool:
        """Whether the call has ended."""
        return self._call._state.code is not None

    def pause(self, until: float) -> None:
        """Let the reader ask for no reply until ``resume``. Returns when it is outside gRPC, or does no more than wait
        there, and at the time ``until`` at the latest."""
        self._may_ask.acquire()
        wait_until(lambda: not self._asking or self._waits(), until)

    def resume(self) -> None:
        self._may_ask.release()

    def _waits(self) -> bool:
        """Whether gRPC has taken note that a reply is asked for, or the call has ended."""
        state = self._call._state
        with state.condition:
            return state.code is not None or cygrpc.OperationType.receive_message in state.due
