"""How much the server takes on at once: places for calls, and bytes that are held for them.

What is over a limit is refused at once, with the limit's name and with when to come back; it has then changed nothing.
Each kind of call has a lane of its own, so that no kind can keep out another. Health checks and reflection have no lane
and are always let in: a server that is busy is not a dead one. gRPC's own ``maximum_concurrent_rpcs`` would refuse
these too, counts waits like work, and tells callers neither the limit nor when to come back.

Nothing here knows gRPC: whoever takes requests, in whatever form, enters them here. All of it happens on the server's
event loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType
from typing import Any, Final, NamedTuple

from lightning_store.clock import SystemClock
from lightning_store.errors import ResourceExhaustedError, StoreUnavailableError
from lightning_store.wire.methods import Method
from lightning_store.wire.requests import dequeue_wait_from_proto, wait_seconds_from_proto
from lightning_store_server.config import ServerConfig
from lightning_store_server.slices import HEAVY_BYTES, FairGate

logger = logging.getLogger("lightning_store_server")

_AT_ONCE: Final = nullcontext()
RETRY_SECONDS: Final = 1.0
"""Until a refused call should be made again, …"""
LONG_RETRY_SECONDS: Final = 5.0
"""… and one of those that keep their place for long: until then some have left."""

STALLED_SECONDS: Final = 10.0
"""A connection that has taken nothing for so long is cut, when others need the bytes that are held for it, …"""
STALLED_BYTES: Final = 1024 * 1024
"""… unless these are few."""
RELIEVE_SECONDS: Final = 1.0
"""How often such connections are looked for at most."""
WAITED_FOR_BYTES: Final = 400
"""What each rollout that a call waits for takes beside its id in the request."""


class Wait(NamedTuple):
    """What is known of a method that may hold a call until something happens."""

    holds: Callable[[Any], bool]
    """Whether it will hold the call with this request."""
    awaited: Callable[[Any], int]
    """How many rollouts or groups the call waits for, each by its id."""


WAITS: Final[Mapping[str, Wait]] = {
    "DequeueRollouts": Wait(lambda request: dequeue_wait_from_proto(request, math.inf) > 0, lambda request: 0),
    "WaitForRollouts": Wait(
        lambda request: wait_seconds_from_proto(request, math.inf) > 0, lambda request: len(request.rollout_ids)
    ),
    "WatchRollouts": Wait(lambda request: True, lambda request: len(request.rollout_id_in.values)),
    "WatchGroups": Wait(
        lambda request: True, lambda request: len(request.group_id_in.values) + len(request.told_group_ids)
    ),
}
"""By their names."""


class _Share:
    """What one connection has of a lane."""

    __slots__ = ("count", "held_bytes", "moved_at", "reply_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.held_bytes = 0
        """Of requests and replies."""
        self.reply_bytes = 0
        self.moved_at = 0.0
        """When its peer last took some of its replies, by the monotonic clock."""


class Lane:
    """The places for one kind of call, and the bytes that are held for those in it.

    No connection may have more of either than it leaves to others, so that the first to come cannot have it all: of n
    greedy ones each gets an n-th or so, and an n-th is left for whoever comes next.
    """

    def __init__(
        self,
        *,
        calls: str,
        limit: str,
        config: ServerConfig,
        retry_seconds: float,
        relieve: Callable[[], object],
        now: Callable[[], float],
    ) -> None:
        """``calls`` is what they are called; ``limit`` the setting that says how many there may be. ``relieve`` is
        called when bytes become scarce; ``now`` is the time, monotonic."""
        self.now = now
        self._calls = calls
        self._limit = limit
        self.count_max: int = getattr(config, limit)
        self._bytes_max = config.queued_bytes_max
        self._retry_seconds = retry_seconds
        self._relieve = relieve
        self._shares: dict[str, _Share] = {}
        self.count = 0
        """Calls that are in."""
        self.request_bytes = 0
        """Of those calls."""
        self.reply_bytes = 0
        """Of their replies that are made and not sent yet."""

    def enter(self, request_bytes: int, peer: str = "") -> Slot:
        """A place for a request of this size. ResourceExhaustedError if there is none.

        The bytes may go past their limit by one request: one that is as large as a message may be would otherwise
        wait for ever for a moment at which nothing else is under way. ``peer`` is the connection that it came on; empty
        if nobody can tell it from others.
        """
        share = self._shares.get(peer) if peer else None
        if self.count >= self.count_max:
            message = f"the server has {self.count} {self._calls} under way, as many as its {self._limit} lets in"
            raise self._refusal(message, self._limit, self.count_max)
        held = self.request_bytes + self.reply_bytes
        if held >= self._bytes_max:
            self._relieve()
            message = f"the server holds {held} bytes for {self._calls}, and takes no more above its queued_bytes_max"
            raise self._refusal(message, "queued_bytes_max", self._bytes_max)
        if share is not None:
            self._check_share(share, held)
        self.count += 1
        self.request_bytes += request_bytes
        if peer:
            if share is None:
                share = self._shares[peer] = _Share()
            share.count += 1
            share.held_bytes += request_bytes
        return Slot(self, request_bytes, peer, share)

    def _check_share(self, share: _Share, held_bytes: int) -> None:
        if share.count > self.count_max - self.count:
            message = f"this connection has {share.count} of the {self.count} {self._calls} that are under way, which"
            raise self._refusal(f"{message} is more than {self._limit} leaves to others", self._limit, self.count_max)
        if share.held_bytes and share.held_bytes >= self._bytes_max - held_bytes:
            self._relieve()
            message = f"{share.held_bytes} bytes are held for {self._calls} of this connection, more than"
            raise self._refusal(f"{message} queued_bytes_max leaves to others", "queued_bytes_max", self._bytes_max)

    def check_reply(self, share: _Share | None, size_bytes: int, *, may_refuse: bool) -> None:
        """ResourceExhaustedError if as many bytes of replies wait to be read as may. StoreUnavailableError if that is
        so of its connection alone, and the reply is to a call that has happened."""
        if may_refuse and self.reply_bytes >= self._bytes_max:
            self._relieve()
            message = f"{self.reply_bytes} bytes of replies wait to be read, as many as queued_bytes_max allows"
            raise self._refusal(message, "queued_bytes_max", self._bytes_max)
        if share is None or not share.reply_bytes:
            return
        free_bytes = self._bytes_max - self.request_bytes - self.reply_bytes
        if share.reply_bytes + size_bytes > free_bytes:
            self._relieve()
            message = f"{share.reply_bytes} bytes of replies wait to be read on this connection, and"
            if may_refuse:
                message = f"{message} queued_bytes_max leaves no more to it"
                raise self._refusal(message, "queued_bytes_max", self._bytes_max)
            raise StoreUnavailableError(f"{message} another does not fit; the call may have happened, so send it again")

    def give_back(self, peer: str, share: _Share) -> None:
        """A place of this connection is free."""
        share.count -= 1
        if not share.count and self._shares.get(peer) is share:
            del self._shares[peer]

    def stalled(self, since: float) -> dict[str, int]:
        """The connections whose replies nobody has taken any of since then, and how many bytes these have."""
        return {
            peer: share.reply_bytes
            for peer, share in self._shares.items()
            if share.reply_bytes and share.moved_at <= since
        }

    def _refusal(self, message: str, limit: str, maximum: int) -> ResourceExhaustedError:
        error = ResourceExhaustedError(
            f"{message} ({maximum}); try again in {self._retry_seconds:g} s", limit=limit, maximum=str(maximum)
        )
        error.retry_after_seconds = self._retry_seconds
        return error


class Slot:
    """The place of one call, until it leaves. A context manager that leaves."""

    __slots__ = ("_lane", "_left", "_peer", "_reply_bytes", "_request_bytes", "_share")

    def __init__(self, lane: Lane, request_bytes: int, peer: str, share: _Share | None) -> None:
        self._lane = lane
        self._request_bytes = request_bytes
        self._peer = peer
        self._share = share
        self._reply_bytes = 0
        self._left = False

    def reply(self, size_bytes: int, *, may_refuse: bool = False) -> None:
        """Count a reply that is about to be sent, until ``sent`` or ``leave``.

        ResourceExhaustedError if it may be refused, as that to a call which changed nothing, and the lane has as many
        bytes of unsent replies as it may have. One that may not be refused is StoreUnavailableError where it is the
        connection that does not take its replies: the call is answered when it is sent again.
        """
        share = self._share
        self._lane.check_reply(share, size_bytes, may_refuse=may_refuse)
        if self._left:
            return
        self._reply_bytes += size_bytes
        self._lane.reply_bytes += size_bytes
        if share is not None:
            if not share.reply_bytes:
                share.moved_at = self._lane.now()
            share.reply_bytes += size_bytes
            share.held_bytes += size_bytes

    def sent(self, size_bytes: int) -> None:
        """So much of the reply is no longer held."""
        if self._left:
            return
        self._reply_bytes -= size_bytes
        self._lane.reply_bytes -= size_bytes
        if self._share is not None:
            self._share.reply_bytes -= size_bytes
            self._share.held_bytes -= size_bytes
            self._share.moved_at = self._lane.now()

    def leave(self) -> None:
        """Free the place and all that it holds. Harmless when done before."""
        if self._left:
            return
        if self._reply_bytes:
            self.sent(self._reply_bytes)
        self._left = True
        self._lane.count -= 1
        self._lane.request_bytes -= self._request_bytes
        if self._share is not None:
            self._share.held_bytes -= self._request_bytes
            self._lane.give_back(self._peer, self._share)

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


class Admission:
    """The lanes of one server."""

    def __init__(self, config: ServerConfig, cut: Callable[[str], object] = lambda peer: None) -> None:
        """``cut`` closes a connection, given its peer."""
        self._cut = cut
        self._now = SystemClock().monotonic
        self._relieved_at = -math.inf

        def lane(calls: str, limit: str, retry_seconds: float = LONG_RETRY_SECONDS) -> Lane:
            return Lane(
                calls=calls,
                limit=limit,
                config=config,
                retry_seconds=retry_seconds,
                relieve=self._relieve,
                now=self._now,
            )

        self.calls = lane("calls", "calls_max", RETRY_SECONDS)
        self.waits = lane("waits", "waits_max")
        self.stream_queries = lane("stream queries", "stream_queries_max")
        self.heartbeats = lane("heartbeats", "calls_max", RETRY_SECONDS)
        """Apart from the other calls: a heartbeat that is refused makes a worker look dead that is not."""
        self.sessions = lane("sessions", "sessions_max")
        self.watches = lane("watches of health, or reflections,", "watches_max")
        self._work = FairGate(1)
        self._lanes = {"StreamQuery": self.stream_queries, "UpdateWorker": self.heartbeats}

    @property
    def lanes(self) -> dict[str, Lane]:
        """Those of calls, by their kind. (Sessions and watches have lanes too, and are no calls.)"""
        lanes = {"calls": self.calls, "waits": self.waits, "stream_queries": self.stream_queries}
        return {**lanes, "heartbeats": self.heartbeats}

    @property
    def at_work(self) -> bool:
        """Whether calls are under way, other than those that only wait."""
        return any(lane.count for lane in (self.calls, self.stream_queries, self.heartbeats))

    def enter(self, method: Method, request: Any, size_bytes: int, peer: str = "") -> Slot:
        """A place for a call. ResourceExhaustedError if there is none.

        Args:
            method: Its method.
            request: The request, decoded. It is looked at only if the method is one of :data:`WAITS`.
            size_bytes: Bytes of the request.
            peer: The connection that it came on; empty if nobody can tell it from others.
        """
        wait = WAITS.get(method.name)
        if wait is not None and wait.holds(request):
            return self.waits.enter(size_bytes + wait.awaited(request) * WAITED_FOR_BYTES, peer)
        return self._lanes.get(method.name, self.calls).enter(size_bytes, peer)

    def work(self, method: Method, size_bytes: int, peer_of: Callable[[], str]) -> AbstractAsyncContextManager[None]:
        """The time in which a request of this size is read, worked on and answered: that of large ones is one after
        another, since each takes up to twenty times its size. (One that waits would have the others wait, too.)"""
        heavy = size_bytes > HEAVY_BYTES and method.name not in WAITS
        return self._work.place(peer_of) if heavy else _AT_ONCE

    def _relieve(self) -> None:
        """Bytes are scarce: cut connections that have long taken nothing of what is held for them."""
        now = self._now()
        if now - self._relieved_at < RELIEVE_SECONDS:
            return
        self._relieved_at = now
        stalled = set[str]()
        for lane in self.lanes.values():
            stalled |= {
                peer for peer, size_bytes in lane.stalled(now - STALLED_SECONDS).items() if size_bytes > STALLED_BYTES
            }
        for peer in stalled:
            logger.warning("A connection of %s is cut: it holds replies that nobody reads, and bytes are scarce", peer)
            self._cut(peer)
