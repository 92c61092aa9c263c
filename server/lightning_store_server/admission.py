"""How much the server takes on at once: places for calls, and bytes that are held for them.

What is over a limit is refused at once, with the limit's name and with when to come back; it has then changed nothing.
Each kind of call has a lane of its own, so that no kind can keep out another. Health checks and reflection have no lane
and are always let in: a server that is busy is not a dead one. gRPC's own ``maximum_concurrent_rpcs`` would refuse
these too, counts waits like work, and tells callers neither the limit nor when to come back.

Nothing here knows gRPC: whoever takes requests, in whatever form, enters them here. All of it happens on the server's
event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from lightning_store.errors import ResourceExhaustedError
from lightning_store.wire.methods import Method
from lightning_store.wire.requests import dequeue_wait_from_proto, wait_seconds_from_proto
from lightning_store_server.config import ServerConfig

RETRY_SECONDS: Final = 1.0
"""Until a refused call should be made again, …"""
LONG_RETRY_SECONDS: Final = 5.0
"""… and one of those that keep their place for long: until then some have left."""

WAITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "DequeueRollouts": lambda request: dequeue_wait_from_proto(request, math.inf) > 0,
    "WaitForRollouts": lambda request: wait_seconds_from_proto(request, math.inf) > 0,
    "WatchRollouts": lambda request: True,
    "WatchGroups": lambda request: True,
}
"""Methods, by name, that may hold a call until something happens, and whether they will hold this one."""


class Lane:
    """The places for one kind of call, and the bytes that are held for those in it."""

    def __init__(self, *, calls: str, limit: str, config: ServerConfig, retry_seconds: float) -> None:
        """``calls`` is what they are called; ``limit`` the setting that says how many there may be."""
        self._calls = calls
        self._limit = limit
        self.count_max: int = getattr(config, limit)
        self._bytes_max = config.queued_bytes_max
        self._retry_seconds = retry_seconds
        self.count = 0
        """Calls that are in."""
        self.request_bytes = 0
        """Of those calls."""
        self.reply_bytes = 0
        """Of their replies that are made and not sent yet."""

    def enter(self, request_bytes: int) -> Slot:
        """A place for a request of this size. ResourceExhaustedError if there is none.

        The bytes may go past their limit by one request: one that is as large as a message may be would otherwise
        wait for ever for a moment at which nothing else is under way.
        """
        if self.count >= self.count_max:
            message = f"the server has {self.count} {self._calls} under way, as many as its {self._limit} lets in"
            raise self._refusal(message, self._limit, self.count_max)
        held = self.request_bytes + self.reply_bytes
        if held >= self._bytes_max:
            message = f"the server holds {held} bytes for {self._calls}, and takes no more above its queued_bytes_max"
            raise self._refusal(message, "queued_bytes_max", self._bytes_max)
        self.count += 1
        self.request_bytes += request_bytes
        return Slot(self, request_bytes)

    def check_reply(self) -> None:
        """ResourceExhaustedError if as many bytes of replies wait to be read as may."""
        if self.reply_bytes >= self._bytes_max:
            message = f"{self.reply_bytes} bytes of replies wait to be read, as many as queued_bytes_max allows"
            raise self._refusal(message, "queued_bytes_max", self._bytes_max)

    def _refusal(self, message: str, limit: str, maximum: int) -> ResourceExhaustedError:
        error = ResourceExhaustedError(
            f"{message} ({maximum}); try again in {self._retry_seconds:g} s", limit=limit, maximum=str(maximum)
        )
        error.retry_after_seconds = self._retry_seconds
        return error


class Slot:
    """The place of one call, until it leaves. A context manager that leaves."""

    __slots__ = ("_lane", "_left", "_reply_bytes", "_request_bytes")

    def __init__(self, lane: Lane, request_bytes: int) -> None:
        self._lane = lane
        self._request_bytes = request_bytes
        self._reply_bytes = 0
        self._left = False

    def reply(self, size_bytes: int, *, may_refuse: bool = False) -> None:
        """Count a reply that is about to be sent, until ``sent`` or ``leave``.

        ResourceExhaustedError if it may be refused, as that to a call which changed nothing, and the lane has as many
        bytes of unsent replies as it may have.
        """
        if may_refuse:
            self._lane.check_reply()
        if not self._left:
            self._reply_bytes += size_bytes
            self._lane.reply_bytes += size_bytes

    def sent(self, size_bytes: int) -> None:
        """So much of the reply is no longer held."""
        if not self._left:
            self._reply_bytes -= size_bytes
            self._lane.reply_bytes -= size_bytes

    def leave(self) -> None:
        """Free the place and all that it holds. Harmless when done before."""
        if not self._left:
            self._left = True
            self._lane.count -= 1
            self._lane.request_bytes -= self._request_bytes
            self._lane.reply_bytes -= self._reply_bytes

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


class Admission:
    """The lanes of one server."""

    def __init__(self, config: ServerConfig) -> None:
        self.calls = Lane(calls="calls", limit="calls_max", config=config, retry_seconds=RETRY_SECONDS)
        self.waits = Lane(calls="waits", limit="waits_max", config=config, retry_seconds=LONG_RETRY_SECONDS)
        self.stream_queries = Lane(
            calls="stream queries", limit="stream_queries_max", config=config, retry_seconds=LONG_RETRY_SECONDS
        )
        self.heartbeats = Lane(calls="heartbeats", limit="calls_max", config=config, retry_seconds=RETRY_SECONDS)
        """Apart from the other calls: a heartbeat that is refused makes a worker look dead that is not."""
        self._lanes = {"StreamQuery": self.stream_queries, "UpdateWorker": self.heartbeats}

    @property
    def lanes(self) -> dict[str, Lane]:
        """All of them, by the kind of their calls."""
        lanes = {"calls": self.calls, "waits": self.waits, "stream_queries": self.stream_queries}
        return {**lanes, "heartbeats": self.heartbeats}

    @property
    def at_work(self) -> bool:
        """Whether calls are under way, other than those that only wait."""
        return any(lane.count for lane in (self.calls, self.stream_queries, self.heartbeats))

    def lane(self, method: Method, request: Any) -> Lane:
        """Where a call belongs. The request, decoded, is looked at only if the method is one of :data:`WAITS`."""
        will_wait = WAITS.get(method.name)
        if will_wait is not None and will_wait(request):
            return self.waits
        return self._lanes.get(method.name, self.calls)
