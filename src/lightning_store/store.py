"""LightningStore: the contract between algorithms and runners, spoken by every store in process and over the wire.

The docstrings here are the contract. They hold for each implementation, and ``lightning_store.testing`` checks them.

What holds for every method:

* Objects given are copied, objects returned are snapshots: changing either changes nothing in the store.
* Payloads (``input``, ``metadata``, ``heartbeat_stats``, resources) are JSON values. Tuples come back as lists; what
  JSON cannot hold raises ``NotJsonError`` (a TypeError) that names the place.
* A call either happens whole or not at all, also when it is cancelled. The one exception says so (``add_many_spans``).
* One clock reading a call: times that one call writes are equal.
* ``ValueError`` where an id that must exist does not, where a value is not legal, or where a status is unknown (then it
  is a ``pydantic.ValidationError``). A store behind a wire also raises ``StoreUnavailableError`` (ConnectionError) and
  ``StoreTimeoutError`` (TimeoutError). See ``lightning_store.errors`` for the tree.

Filters of the ``query_…`` methods: each one given narrows the rows (``filter_logic="and"``), or all of them together
widen them (``"or"``); None means "not given". An empty list in ``…_in`` matches no row. ``…_contains`` is a
case-sensitive substring; ``""`` matches every value that is not null. With no filter every row matches.
Then rows are sorted (by insertion when ``sort_by`` is None; ties by insertion; a missing time last and a missing text
first when ascending, the reverse when descending) and then paged: ``limit=-1`` is all, ``0`` none; ``total`` counts the
rows before paging. An unknown ``sort_by``, ``sort_order`` or ``filter_logic`` and any other negative number is a
ValueError; sorting by a field that has no order (``input``, ``config``, …) is a TypeError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from lightning_store.errors import UnsupportedError
from lightning_store.model import (
    UNSET,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    CompletedRollout,
    EnqueueRolloutRequest,
    FilterLogic,
    PaginatedResult,
    Resource,
    ResourcesUpdate,
    ReturnWhen,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    SortOrder,
    Span,
    Unset,
    Worker,
    WorkerStatus,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


class LightningStoreCapabilities(TypedDict):
    """What a store can do beyond being called from one task."""

    thread_safe: bool
    """May be called from several threads at once."""
    async_safe: bool
    """May be called from several tasks at once, on several event loops."""
    zero_copy: bool
    """The same data in every process: a copy made by fork or pickle speaks to the same store."""
    otlp_traces: bool
    """Takes spans over OTLP at ``otlp_traces_endpoint()``."""


class LightningStoreStatistics(TypedDict, total=False):
    """Sizes and limits of a store. Those in bytes are there only where the store counts them."""

    name: str
    total_rollouts: int
    total_attempts: int
    total_spans: int
    total_resources: int
    total_workers: int
    uptime: float
    """Seconds since the store was made."""
    total_span_bytes: int
    eviction_threshold_bytes: int
    safe_threshold_bytes: int
    memory_capacity_bytes: int
    total_bytes: int
    """About what everything stored takes."""
    memory_limit_bytes: int
    """Past so many of them, what would add to them is refused (``ResourceExhaustedError``)."""


class LightningStore(ABC):
    """The queue, rollouts, attempts, spans, resources and workers of one training run."""

    # --- About the store ---------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def capabilities(self) -> LightningStoreCapabilities:
        """What this store can do."""

    @property
    def strict(self) -> bool:
        """Whether the stricter rules hold: see ``docs/state_machine.md``."""
        return False

    @property
    def replay_window_seconds(self) -> float:
        """How long a request that is made again is answered from memory (``lightning_store.engine.idempotency``). 0: it is not."""
        return 0.0

    @abstractmethod
    async def statistics(self) -> LightningStoreStatistics:
        """Counts of what is stored, and the memory limits where there are any."""

    def otlp_traces_endpoint(self) -> str:
        """URL that takes spans over OTLP. NotImplementedError where ``capabilities["otlp_traces"]`` is false."""
        raise NotImplementedError(f"{type(self).__name__} takes no spans over OTLP")

    # --- The queue ---------------------------------------------------------------------------------------------------

    @abstractmethod
    async def start_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        """Make a rollout that skips the queue, with its first attempt (status preparing) held by ``worker_id``.

        ``resources_id=None`` takes the latest resources' id, or None when there are none. An id that is not known is
        kept as given; in strict mode it is a ValueError. ``metadata=None`` is stored as ``{}``.
        """

    @abstractmethod
    async def enqueue_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rollout:
        """Put one rollout at the tail of the queue: status queuing, no attempt yet. Arguments as ``start_rollout``."""

    @abstractmethod
    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        """Put rollouts at the tail of the queue in the order given: all of them, or on any error none."""

    @abstractmethod
    async def dequeue_rollout(self, worker_id: str | None = None, *, max_wait: float = 0.0) -> AttemptedRollout | None:
        """Claim the rollout at the head of the queue, with a new attempt; None when the queue is empty.

        No rollout is handed out twice, however many callers there are. The attempt's number is one more than the
        attempts so far; its status and the rollout's become preparing. With a ``worker_id`` the worker is recorded as
        having asked, and as busy with what it got.

        It never blocks, unless it is allowed to wait: then one that finds the queue empty gets the next rollout that is
        queued within ``max_wait`` seconds, in the order in which the waiting callers came.
        """

    @abstractmethod
    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None, max_wait: float = 0.0
    ) -> Sequence[AttemptedRollout]:
        """Claim up to ``limit`` rollouts; ``[]`` if there are none or limit is 0 or less. The worker holds the last.

        ``max_wait`` as in ``dequeue_rollout``; the wait is for at least one.
        """

    @abstractmethod
    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        """Begin a new attempt of a rollout, whatever its status and ``max_attempts``; it leaves the queue if it was in.

        ValueError: unknown rollout.
        """

    # --- Spans -------------------------------------------------------------------------------------------------------

    @abstractmethod
    async def add_span(self, span: Span) -> Span | None:
        """Store a span; return it, or None if its key (rollout, attempt, span id) is stored already.

        The span refreshes the attempt's heartbeat (store clock, never backwards) and moves a preparing attempt, with
        its rollout, to running. An unresponsive attempt becomes running again, and so does its rollout if the attempt
        is its latest and the rollout is requeuing; a timeout, failed or succeeded attempt stays as it is. A duplicate
        changes nothing. ``span.sequence_id`` is kept as given and raises the rollout's counter to it. ValueError:
        unknown rollout or attempt.
        """

    @abstractmethod
    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Store spans of any mix of rollouts and attempts; return those stored, in the order given, less duplicates.

        If some cannot be stored, ``SpansRejectedError`` (a ValueError) lists them, and all the others are stored.
        """

    @abstractmethod
    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        """Store a span that an OpenTelemetry SDK recorded, as ``add_span`` does.

        Without a ``sequence_id`` it takes the rollout's next, in the same step.
        """

    @abstractmethod
    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Allocate the rollout's next span number: 1, 2, 3, … over all its attempts, no gap and no repeat.

        The attempt need not exist yet. ValueError: unknown rollout.
        """

    @abstractmethod
    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Allocate one number for each (rollout id, attempt id), in order. ValueError, and none: unknown rollout."""

    # --- Queries -----------------------------------------------------------------------------------------------------

    @abstractmethod
    async def query_rollouts(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[RolloutStatus] | None = None,
        rollout_ids: Sequence[str] | None = None,
    ) -> PaginatedResult[Rollout]:
        """Rollouts that match; each one that has attempts comes as AttemptedRollout with its latest.

        ``status`` and ``rollout_ids`` are the older names of ``status_in`` and ``rollout_id_in``, which win.
        """

    @abstractmethod
    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Attempt]:
        """Attempts of a rollout; none for an unknown rollout (strict: ValueError)."""

    @abstractmethod
    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
    ) -> PaginatedResult[Span]:
        """Spans of a rollout, of all its attempts, of one, or of the ``"latest"`` one (even if it has none).

        None for an unknown rollout (strict: ValueError). ``filter_logic`` joins the optional filters; the rollout and
        attempt always hold. ``SpansEvictedError`` (a RuntimeError) if they were dropped to free memory.
        """

    @abstractmethod
    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[ResourcesUpdate]:
        """Resources that match, each in its present version."""

    @abstractmethod
    async def query_workers(
        self,
        *,
        status_in: Sequence[WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Worker]:
        """Workers that match."""

    @abstractmethod
    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        """The rollout, as AttemptedRollout with its latest attempt if it has one; None if unknown."""

    @abstractmethod
    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """The newest attempt; None if there is none or the rollout is unknown (strict: ValueError if unknown)."""

    @abstractmethod
    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """The present version of these resources; None if unknown."""

    @abstractmethod
    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """The resources added or updated last; None if there are none."""

    @abstractmethod
    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """The worker; None if it was never mentioned."""

    # --- Resources ---------------------------------------------------------------------------------------------------

    @abstractmethod
    async def add_resources(self, resources: Mapping[str, Resource]) -> ResourcesUpdate:
        """Publish resources under a new id, as version 1. They become the latest."""

    @abstractmethod
    async def update_resources(self, resources_id: str, resources: Mapping[str, Resource]) -> ResourcesUpdate:
        """Replace the resources of an id: version + 1, create_time kept, now the latest.

        An unknown id is created at version 1 (strict: ValueError).
        """

    # --- Updates -----------------------------------------------------------------------------------------------------

    @abstractmethod
    async def update_rollout(
        self,
        rollout_id: str,
        input: Any | Unset = UNSET,
        mode: RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
    ) -> Rollout:
        """Set fields of a rollout; UNSET leaves one alone, None clears input, mode, resources_id or metadata.

        ``metadata`` is replaced, not merged. A terminal status (succeeded, failed, cancelled) stamps end_time and wakes
        waiters; queuing or requeuing puts it into the queue. Cancelling touches neither attempt nor worker. Every
        transition is allowed (strict: a finished rollout goes only to queuing or requeuing, else ValueError).
        ValueError: unknown rollout, None for status or config.
        """

    async def cancel_rollouts(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        """End rollouts as cancelled: all of them, or on an unknown id none. Those that are terminal stay as they are.

        Returns them in the order given. Their runners learn of it with their next heartbeat.
        """
        raise UnsupportedError(f"{type(self).__name__} cannot cancel several rollouts; use update_rollout")

    @abstractmethod
    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | None | Unset = UNSET,
        last_heartbeat_time: float | None | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
    ) -> Attempt:
        """Set fields of an attempt; UNSET leaves one alone, None clears worker_id, last_heartbeat_time or metadata.

        The rollout follows its latest attempt: preparing, running and succeeded pass through; failed, timeout and
        unresponsive become requeuing if ``config`` asks for a retry and attempts are left, else failed. This is
        derived anew on each call, also from a late report (strict: not once the rollout is finished). A report on an
        older attempt is recorded and leaves the rollout alone.
        ValueError: unknown rollout or attempt, no attempts, None for status.
        """

    @abstractmethod
    async def update_worker(self, worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset = UNSET) -> Worker:
        """Record a worker's heartbeat, at the store's clock; it also keeps the attempt that the worker holds alive.

        ``heartbeat_stats`` are replaced when given. TypeError: None for them. ValueError: an empty worker_id.
        """

    # --- Waiting -----------------------------------------------------------------------------------------------------

    @abstractmethod
    async def wait_for_rollouts(
        self, *, rollout_ids: Sequence[str], timeout: float | None = None, return_when: ReturnWhen = "all"
    ) -> list[Rollout]:
        """Wait until all these rollouts are terminal; return them in the order asked, repeats as asked.

        ``return_when="any"`` waits for one of them, and returns all that are terminal then. After ``timeout`` seconds,
        return those that are terminal by then: None waits without limit, 0 or less looks once. Unknown ids are left out
        at once (strict: ValueError). A rollout that waits for its retry is not terminal.
        """

    def watch_rollouts(
        self, rollout_ids: Sequence[str] | None = None, *, after: str | None = None
    ) -> AsyncIterator[CompletedRollout]:
        """Tell of rollouts as they become terminal: ``async for completed in store.watch_rollouts(): …``.

        Those come first that are terminal already, then the others, in the order in which they ended and each once. A
        rollout that is put back and ends again is told again, and so is one whose outcome changes; one that was put
        back before it could be told is told when it ends anew.

        With ``rollout_ids`` the feed ends when each of them has been told; ids that are unknown, or deleted meanwhile,
        are passed over (strict: ValueError if unknown at the start). Without, it goes on for ever. ``after`` goes on
        where the completion with this cursor was told. ``CursorUnknownError`` (a ValueError): it is of another store.
        """
        raise UnsupportedError(f"{type(self).__name__} has no feed of completions; use wait_for_rollouts")

    # --- Deleting ----------------------------------------------------------------------------------------------------

    async def delete_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        older_than: float | None = None,
        status_in: Sequence[RolloutStatus] | None = None,
    ) -> list[str]:
        """Delete rollouts with their attempts and spans, to free what they take; return their ids.

        Those for which everything holds that is given: one of ``rollout_ids``, terminal for ``older_than`` seconds or
        longer, one of the statuses ``status_in``. One of the first two must be given: ValueError. Late reports on a
        deleted rollout are refused as for any unknown one, and who waits for it goes on without it. Great numbers are
        deleted some at a time, and other calls get their turn in between.
        """
        raise UnsupportedError(f"{type(self).__name__} cannot delete rollouts")
