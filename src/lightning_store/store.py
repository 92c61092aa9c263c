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
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from lightning_store.errors import UnsupportedError
from lightning_store.model import (
    UNSET,
    Admission,
    AdmissionState,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    CompletedRollout,
    EnqueueRolloutRequest,
    FilterLogic,
    Group,
    GroupTerms,
    PaginatedResult,
    Resource,
    ResourcesUpdate,
    ReturnWhen,
    Rollout,
    RolloutConfig,
    RolloutFilters,
    RolloutMode,
    RolloutStatus,
    SortOrder,
    Span,
    Unset,
    WatchFilters,
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
    disk_used_bytes: int
    """What the data takes on the disk, with its indices."""
    disk_file_bytes: int
    """What the files take, with what is free within them and the log."""
    disk_free_bytes: int
    """What is left on the disk."""
    disk_limit_bytes: int
    """Past so many ``disk_used_bytes``, what would add to them is refused."""
    rollouts_by_status: dict[str, int]
    """How many rollouts have each status, as far as any has it."""
    oldest_queued_time: float
    """When the rollout at the head of the queue was made; absent while the queue is empty."""
    completed_last_minute: int
    """Rollouts that became terminal in the last 60 seconds."""
    rejected_spans: int
    """Spans that came over OTLP and were rejected, since the server started. Only a server knows."""


class LightningStore(ABC):
    """The queue, rollouts, attempts, spans, resources and workers of one training run."""

    # --- About the store ---------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def capabilities(self) -> LightningStoreCapabilities:
        """What this store can do beyond being called from one task."""

    @property
    def strict(self) -> bool:
        """Whether the stricter rules hold: see ``docs/state_machine.md``."""
        return False

    @property
    def replay_window_seconds(self) -> float:
        """How long a request that is made again is answered from its recorded reply, in seconds. 0: it is not. See
        ``lightning_store.request_scope``."""
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
        """Make a rollout that skips the queue, with its first attempt.

        Args:
            input: The task: any JSON value.
            mode: Which split it belongs to; None for none.
            resources_id: The resources to use. None takes the latest, or stays None where there are none. An id that is
                not known is kept as given.
            config: Timeouts and retries; None for the defaults.
            metadata: A JSON object; None is stored as ``{}``.
            worker_id: Who runs the attempt; None for nobody.

        Returns:
            The rollout and its attempt, both preparing.

        Raises:
            ValueError: An argument is not legal. Strict mode: ``resources_id`` is not known (facts 2 and 3).
            TypeError: A payload holds what JSON cannot hold.
        """

    @abstractmethod
    async def enqueue_rollout(
        self,
        input: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        group_id: str | None = None,
        group_size: int | None = None,
    ) -> Rollout:
        """Put one rollout at the tail of the queue.

        Args:
            input: The task: any JSON value.
            mode: Which split it belongs to; None for none.
            resources_id: The resources to use. None takes the latest, or stays None where there are none. An id that is
                not known is kept as given.
            config: Timeouts and retries; None for the defaults.
            metadata: A JSON object; None is stored as ``{}``.
            priority: Rollouts of a higher priority are claimed before all others: -10,000 to 10,000.
            group_id: The group whose member it is; None for none. See ``watch_groups``.
            group_size: How many members that group has; None: as many as there are.

        Returns:
            The rollout, queuing and without an attempt.

        Raises:
            ValueError: An argument is not legal. Strict mode: ``resources_id`` is not known (facts 1 to 3).
            TypeError: A payload holds what JSON cannot hold.
        """

    @abstractmethod
    async def enqueue_many_rollouts(
        self, rollouts: Sequence[EnqueueRolloutRequest], *, idempotency_key: str | None = None
    ) -> Sequence[Rollout]:
        """Put rollouts at the tail of the queue: all of them, or on any error none.

        Args:
            rollouts: The arguments of ``enqueue_rollout`` for each.
            idempotency_key: Names this batch. A later call with the same key and the same rollouts, of any process,
                queues nothing and returns those that were queued, as they are then. The key holds for as long as one
                of them exists; None is no key.

        Returns:
            The rollouts, in the order given, in which they stand in the queue too. Those of a key that were deleted
            since are left out.

        Raises:
            IdempotencyKeyReusedError: A ValueError. The key was used for other rollouts.
            ValueError: As ``enqueue_rollout``.
            TypeError: As ``enqueue_rollout``.
        """

    @abstractmethod
    async def dequeue_rollout(self, worker_id: str | None = None, *, max_wait: float = 0.0) -> AttemptedRollout | None:
        """Claim the rollout at the head of the queue, with a new attempt (facts 4, 25 and 26).

        No rollout is handed out twice, however many callers there are. The attempt's number is one more than the
        attempts so far.

        Args:
            worker_id: Who asks. The worker is recorded as having asked, and as busy with what it got.
            max_wait: How long to wait for a rollout if the queue is empty, in seconds. Callers that wait are served in
                the order in which they came.

        Returns:
            The rollout and its attempt, both preparing; None if the queue was empty all the time.

        Raises:
            ValueError: ``max_wait`` is NaN.
        """

    @abstractmethod
    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None, max_wait: float = 0.0
    ) -> Sequence[AttemptedRollout]:
        """Claim several rollouts from the head of the queue. The worker holds the last one.

        Args:
            limit: How many at most; 0 or less claims none.
            worker_id: As in ``dequeue_rollout``.
            max_wait: As in ``dequeue_rollout``. The wait is for at least one.

        Returns:
            The rollouts with their attempts, in the order of the queue. Fewer than ``limit`` if there are no more, or
            if their payloads are large.

        Raises:
            ValueError: As ``dequeue_rollout``.
        """

    @abstractmethod
    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        """Begin a new attempt of a rollout, whatever its status and ``max_attempts`` (fact 6).

        Args:
            rollout_id: The rollout. It leaves the queue if it was in it.
            worker_id: Who runs the attempt; None for nobody.

        Returns:
            The rollout and its new attempt, both preparing.

        Raises:
            ValueError: The rollout is not known.
        """

    # --- Spans -------------------------------------------------------------------------------------------------------

    @abstractmethod
    async def add_span(self, span: Span) -> Span | None:
        """Store a span (facts 14 and 17 to 19).

        The span refreshes the attempt's heartbeat (store clock, never backwards) and moves a preparing attempt, with
        its rollout, to running. It revives an unresponsive attempt; a timeout, failed or succeeded one it does not.

        Args:
            span: Its ``sequence_id`` is kept as given, and raises the rollout's counter to it.

        Returns:
            The span; None if a span with its key (rollout, attempt, span id) is stored already, which changes nothing.

        Raises:
            ValueError: The rollout or the attempt is not known, or the span cannot be stored.
            AttemptFencedError: A ValueError. The store refuses the spans of attempts that were cancelled or superseded.
            TypeError: It is no Span, or holds what a span cannot hold.
        """

    @abstractmethod
    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Store spans of any mix of rollouts and attempts (fact 20).

        Args:
            spans: Each as in ``add_span``.

        Returns:
            Those that were stored, in the order given; duplicates are left out.

        Raises:
            SpansRejectedError: A ValueError. Some were refused, and it lists them; all the others are stored.
        """

    @abstractmethod
    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        """Store a span that an OpenTelemetry SDK recorded, as ``add_span`` does (fact 21).

        Args:
            rollout_id: The rollout.
            attempt_id: The attempt.
            readable_span: A span of the SDK that has ended.
            sequence_id: Its number; None takes the rollout's next, in the same transaction.

        Returns:
            The span as it is stored; None for a duplicate.

        Raises:
            ValueError: As ``add_span``; or the span has not ended, or records nothing.
            TypeError: It is no span.
        """

    @abstractmethod
    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Allocate the rollout's next span number: 1, 2, 3, … over all its attempts, no gap and no repeat (fact 19).

        Args:
            rollout_id: The rollout.
            attempt_id: The attempt, which need not exist yet.

        Raises:
            ValueError: The rollout is not known.
            AttemptFencedError: A ValueError. The store fences attempts, and this one was cancelled or superseded.
        """

    @abstractmethod
    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Allocate one span number for each pair: all of them, or on any error none.

        Args:
            rollout_attempt_ids: Pairs of rollout id and attempt id.

        Returns:
            The numbers, in the order of the pairs.

        Raises:
            ValueError: As ``get_next_span_sequence_id``.
        """

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
        **filters: Unpack[RolloutFilters],
    ) -> PaginatedResult[Rollout]:
        """Rollouts that match (facts 9 and 23).

        Args:
            status_in: Only those in one of these statuses.
            rollout_id_in: Only those with one of these ids.
            rollout_id_contains: Only those with this text in their id.
            filter_logic: Whether all of the filters have to hold ("and") or one of them ("or").
            sort_by: A field of a Rollout that has an order; None is the order of insertion.
            sort_order: "asc" or "desc".
            limit: How many rows at most; -1 for all.
            offset: How many rows to skip first.
            status: The older name of ``status_in``, which wins.
            rollout_ids: The older name of ``rollout_id_in``, which wins.
            filters: Any of :class:`lightning_store.model.RolloutFilters`.

        Returns:
            The rows; each one that has attempts is an AttemptedRollout with its latest.

        Raises:
            ValueError: An argument is not legal.
            TypeError: ``sort_by`` names a field that has no order.
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
        """Attempts of a rollout.

        Args:
            rollout_id: The rollout.
            sort_by: A field of an Attempt that has an order; None is the order of insertion.
            sort_order: "asc" or "desc".
            limit: How many rows at most; -1 for all.
            offset: How many rows to skip first.

        Returns:
            The rows; none for a rollout that is not known.

        Raises:
            ValueError: An argument is not legal. Strict mode: the rollout is not known.
            TypeError: ``sort_by`` names a field that has no order.
        """

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
        """Spans of a rollout (facts 22 and 23). The rollout and the attempt always hold.

        Args:
            rollout_id: The rollout.
            attempt_id: Only those of this attempt, or of the "latest" one, even if it has none; None for all attempts.
            trace_id: Only those of this trace.
            trace_id_contains: Only those with this text in their trace id.
            span_id: Only those with this id.
            span_id_contains: Only those with this text in their id.
            parent_id: Only those with this parent.
            parent_id_contains: Only those with this text in their parent's id.
            name: Only those with this name.
            name_contains: Only those with this text in their name.
            filter_logic: Whether all of the filters have to hold ("and") or one of them ("or").
            limit: How many rows at most; -1 for all.
            offset: How many rows to skip first.
            sort_by: A field of a Span that has an order; None is the order of insertion.
            sort_order: "asc" or "desc".

        Returns:
            The rows; none for a rollout that is not known.

        Raises:
            ValueError: An argument is not legal. Strict mode: the rollout is not known.
            TypeError: ``sort_by`` names a field that has no order.
            SpansEvictedError: A RuntimeError. The spans were dropped to free memory.
        """

    async def query_many_spans(
        self,
        rollout_ids: Sequence[str],
        attempt: Literal["latest"] | None = "latest",
        *,
        name_in: Sequence[str] | None = None,
        attributes: Sequence[str] | None = None,
    ) -> dict[str, list[Span]]:
        """The spans of a batch of rollouts in one call, all taken at one moment.

        Args:
            rollout_ids: The rollouts.
            attempt: Only the spans of each rollout's "latest" attempt, even if that has none; None for all attempts.
            name_in: Only those with one of these names.
            attributes: Which attributes to read; ``"gen_ai.*"`` is all those whose names begin with ``gen_ai.``. The
                spans then have their ids, name, status, times, and these attributes; all else is left out as if it
                had never been there. None reads whole spans.

        Returns:
            For each rollout, in the order given, its spans by sequence number; none for one that is not known.

        Raises:
            ValueError: An argument is not legal. Strict mode: a rollout is not known.
            TypeError: An argument is no list of texts.
            SpansEvictedError: A RuntimeError. The spans of a rollout were dropped to free memory.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} reads no batches of spans; use query_spans")

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
        """Resources that match, each in its present version.

        Args:
            resources_id: Only those with this id.
            resources_id_contains: Only those with this text in their id.
            filter_logic: Whether all of the filters have to hold ("and") or one of them ("or").
            sort_by: A field of a ResourcesUpdate that has an order; None is the order of insertion.
            sort_order: "asc" or "desc".
            limit: How many rows at most; -1 for all.
            offset: How many rows to skip first.

        Raises:
            ValueError: An argument is not legal.
            TypeError: ``sort_by`` names a field that has no order.
        """

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
        """Workers that match.

        Args:
            status_in: Only those in one of these statuses.
            worker_id_contains: Only those with this text in their id.
            filter_logic: Whether all of the filters have to hold ("and") or one of them ("or").
            sort_by: A field of a Worker that has an order; None is the order of insertion.
            sort_order: "asc" or "desc".
            limit: How many rows at most; -1 for all.
            offset: How many rows to skip first.

        Raises:
            ValueError: An argument is not legal.
            TypeError: ``sort_by`` names a field that has no order.
        """

    @abstractmethod
    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        """The rollout, as AttemptedRollout with its latest attempt if it has one; None if unknown."""

    @abstractmethod
    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """The newest attempt of a rollout; None if there is none, or no such rollout.

        Raises:
            ValueError: Strict mode, and the rollout is not known.
        """

    @abstractmethod
    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """The present version of these resources; None if unknown."""

    @abstractmethod
    async def get_latest_resources(self, *, run: str | None = None) -> ResourcesUpdate | None:
        """The resources added or updated last; None if there are none.

        Args:
            run: Only those of this run; None is all.
        """

    @abstractmethod
    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """The worker; None if it was never mentioned."""

    # --- Resources ---------------------------------------------------------------------------------------------------

    @abstractmethod
    async def add_resources(
        self, resources: Mapping[str, Resource], *, policy_version: int | None = None, run: str | None = None
    ) -> ResourcesUpdate:
        """Publish resources under a new id, as version 1. They become the latest (fact 24).

        Args:
            resources: By name.
            policy_version: Which policy this is: a number above all that the run has published; None is the next.
            run: The run to which they belong, that of rollouts whose metadata have it as ``lightning.run``; None for no
                run in particular.

        Returns:
            What was published, with its id.

        Raises:
            ValueError: One of them is no resource, or the policy version is not greater.
        """

    @abstractmethod
    async def update_resources(
        self,
        resources_id: str,
        resources: Mapping[str, Resource],
        *,
        policy_version: int | None = None,
        run: str | None = None,
    ) -> ResourcesUpdate:
        """Replace the resources of an id. They become the latest (fact 24).

        Args:
            resources_id: The id. One that is not known is created, at version 1.
            resources: By name.
            policy_version: As in ``add_resources``.
            run: As in ``add_resources``; None is that of the id.

        Returns:
            What was published: version + 1, ``create_time`` kept.

        Raises:
            ValueError: As ``add_resources``; the id is of another run. Strict mode: the id is not known.
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
        """Set fields of a rollout (facts 5, 7 and 8). UNSET leaves one alone.

        A terminal status stamps ``end_time`` and wakes waiters; queuing or requeuing puts the rollout into the queue.
        Cancelling touches neither the attempt nor its worker.

        Args:
            rollout_id: The rollout.
            input: Any JSON value; None is the JSON null.
            mode: None clears it.
            resources_id: None clears it.
            status: Every transition is allowed.
            config: Replaced as a whole.
            metadata: Replaced as a whole, not merged; None clears it.

        Returns:
            The rollout as it is then.

        Raises:
            ValueError: The rollout is not known, an argument is not legal, or ``status`` or ``config`` is None. Strict
                mode: a finished rollout goes only to queuing or requeuing.
        """

    async def cancel_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> list[Rollout]:
        """End rollouts as cancelled: all of them, or on an unknown id none. Their runners learn of it with their next
        heartbeat.

        Args:
            rollout_ids: Those that are terminal already stay as they are. None is all that are not terminal and that
                the filters leave, of which one at least has to be given.
            status_in: Only those in one of these statuses.
            filters: Any of :class:`lightning_store.model.RolloutFilters`.

        Returns:
            The rollouts, in the order given, else in the order of insertion; those that the filters leave out are not
            among them. Each one that has attempts is an AttemptedRollout with its latest.

        Raises:
            ValueError: A rollout is not known; or neither ids nor a filter is given.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} cannot cancel several rollouts; use update_rollout")

    async def requeue_rollouts(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        """Put terminal rollouts back to the tail of the queue: all of them, or on an unknown id none.

        Each is requeuing and has one attempt more at least, whatever its ``max_attempts`` says.

        Args:
            rollout_ids: Those that are not terminal stay as they are.

        Returns:
            The rollouts, in the order given; each one that has attempts is an AttemptedRollout with its latest.

        Raises:
            ValueError: A rollout is not known.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} cannot requeue several rollouts; use update_rollout")

    @abstractmethod
    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | None | Unset = UNSET,
        last_heartbeat_time: float | None | Unset = UNSET,
        metadata: Mapping[str, Any] | None | Unset = UNSET,
        *,
        counts: bool | Unset = UNSET,
    ) -> Attempt:
        """Set fields of an attempt (facts 10 to 16). UNSET leaves one alone.

        The rollout follows its latest attempt: preparing, running and succeeded pass through; failed, timeout and
        unresponsive become requeuing if ``config`` asks for a retry and attempts are left, else failed. This is
        derived anew on each call, also from a late report (strict: not once the rollout is finished). A report on an
        older attempt is recorded and leaves the rollout alone.

        Args:
            rollout_id: The rollout.
            attempt_id: The attempt, or "latest".
            status: The new status.
            worker_id: Who runs it; None clears it.
            last_heartbeat_time: In seconds since the epoch; None clears it.
            metadata: Replaced as a whole, not merged; None clears it.
            counts: Whether the attempt is one of ``max_attempts``. A failure that is not is always tried again.

        Returns:
            The attempt as it is then.

        Raises:
            ValueError: The rollout or the attempt is not known, the rollout has no attempts, or ``status`` is None.
        """

    @abstractmethod
    async def update_worker(self, worker_id: str, heartbeat_stats: Mapping[str, Any] | Unset = UNSET) -> Worker:
        """Record a worker's heartbeat, at the store's clock (fact 27). It also keeps the attempt that the worker holds
        alive.

        Args:
            worker_id: The worker; it is recorded at its first mention.
            heartbeat_stats: A JSON object, which replaces the former one; UNSET keeps that.

        Returns:
            The worker as it is then.

        Raises:
            ValueError: ``worker_id`` is empty.
            TypeError: ``heartbeat_stats`` is None, or no mapping.
        """

    # --- Waiting -----------------------------------------------------------------------------------------------------

    @abstractmethod
    async def wait_for_rollouts(
        self, rollout_ids: Sequence[str], *, timeout: float | None = None, return_when: ReturnWhen = "all"
    ) -> list[Rollout]:
        """Wait until rollouts are terminal (fact 31). One that waits for its retry is not.

        Args:
            rollout_ids: The rollouts. Those that are not known are left out at once.
            timeout: How long to wait, in seconds: None without limit, 0 or less looks once.
            return_when: Whether to wait for "all" of them, or for "any".

        Returns:
            Those that are terminal by then, in the order asked, repeats as asked; each one that has attempts is an
            AttemptedRollout with its latest.

        Raises:
            ValueError: Strict mode, and a rollout is not known.
        """

    def watch_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        after: str | None = None,
        **filters: Unpack[WatchFilters],
    ) -> AsyncIterator[CompletedRollout]:
        """Follow rollouts as they become terminal: ``async for completed in store.watch_rollouts(): …``.

        Those come first that are terminal already, then the others, in the order in which they ended and each once. A
        rollout that is put back and ends again comes again, and so does one whose outcome changes; one that was put
        back before it could come comes when it ends anew.

        A wait for the next completion that is cancelled loses nothing: ``asyncio.timeout`` around ``anext(feed)`` may
        pass, and the feed goes on.

        Args:
            rollout_ids: Only these; the feed ends when each of them has come. Those that are not known, or deleted
                meanwhile, are passed over. None is all, and the feed goes on for ever.
            after: The cursor of a completion, to go on after it. "now" leaves out what is terminal already when the
                feed is first read; with ``rollout_ids``, that counts as having come.
            filters: Any of :class:`lightning_store.model.WatchFilters`. A rollout that ends and does not
                match is passed over.

        Raises:
            CursorUnknownError: A ValueError. The cursor is of another store.
            ValueError: Strict mode, and a rollout is not known at the start.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} has no feed of completions; use wait_for_rollouts")

    def watch_groups(self, group_ids: Sequence[str] | None = None, **terms: Unpack[GroupTerms]) -> AsyncIterator[Group]:
        """Follow groups as they are done: ``async for group in store.watch_groups(run="run-8"): …``.

        Each is returned once by a feed, as soon as it is

        * whole: all its members have succeeded;
        * partial: ``min_done`` members at least have succeeded, and the others have ended, or its deadline has passed;
        * failed: so many members have ended otherwise that fewer than ``min_done`` can succeed.

        A wait for the next group that is cancelled loses nothing.

        Args:
            group_ids: Only these; the feed ends when each of them has come. Those that have no members are passed over.
                None is all, and the feed goes on for ever.
            terms: Any of :class:`lightning_store.model.GroupTerms`.

        Raises:
            ValueError: An argument is not legal.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} has no feed of groups")

    async def wait_for_groups(self, group_ids: Sequence[str], **terms: Unpack[GroupTerms]) -> list[Group]:
        """Wait until each of these groups is whole, partial or failed, as ``watch_groups`` says, or until ``timeout``.

        Args:
            group_ids: Those that have no members are left out.
            terms: Any of :class:`lightning_store.model.GroupTerms`.

        Returns:
            Those that are done by then, in the order given.

        Raises:
            ValueError: An argument is not legal.
            UnsupportedError: This store cannot.
        """
        groups = self.watch_groups(group_ids, **terms)
        found = {group.group_id: group async for group in groups}
        return [found[group_id] for group_id in group_ids if group_id in found]

    async def cancel_group(self, group_id: str) -> list[Rollout]:
        """Cancel the members of a group that have not ended.

        Returns:
            Those that were cancelled.

        Raises:
            UnsupportedError: This store cannot.
        """
        return await self.cancel_rollouts(group_id_in=[group_id])

    # --- Consuming ---------------------------------------------------------------------------------------------------

    async def mark_consumed(
        self, consumer: str, rollout_ids: Sequence[str], *, checkpoint: str | None = None
    ) -> list[str]:
        """Note that a consumer has consumed rollouts: feeds for it leave them out from now on.

        Args:
            consumer: The name of whoever consumes. Each has a set of its own.
            rollout_ids: The rollouts. A member of a group stands for all members that there are. Those that are not
                known are left out.
            checkpoint: Records that a checkpoint of this name includes all that the consumer has marked until now,
                these rollouts among it. A name that was used before names the new one from now on.

        Returns:
            The ids of those that the consumer had not marked before, and that are marked now.

        Raises:
            ValueError: A name is empty.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} does not keep what was consumed")

    async def rewind_consumer(self, consumer: str, *, checkpoint: str | None = None) -> list[str]:
        """Take back what a consumer has marked since a checkpoint.

        New feeds for it return these rollouts again. Call it when the model is restored from that checkpoint.

        Args:
            consumer: Its name.
            checkpoint: Recorded by ``mark_consumed``. Later checkpoints are forgotten. None takes everything back.

        Returns:
            The ids of the rollouts that were marked, in the order in which they were queued.

        Raises:
            CheckpointUnknownError: A ValueError. The consumer has recorded no such checkpoint.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} does not keep what was consumed")

    async def set_admission(self, run: str, *, max_open_groups: int | None = None, paused: bool = False) -> Admission:
        """Bound how far runners may go ahead with the groups of a run.

        A group of the run begins with its first claim only while fewer than ``max_open_groups`` are open: begun, and
        not consumed by any consumer. A group of which no member can succeed any more is not open. While there is no
        room a claim finds the queue as if the group were not in it; one that waits is woken when there is room. Groups
        that have begun go on, retries included. Rollouts of no group are not bounded.

        Args:
            run: The ``lightning.run`` of the rollouts' metadata.
            max_open_groups: How many may be open; None: any number.
            paused: Whether no group begins.

        Returns:
            What holds from now on. It replaces what was set before.

        Raises:
            ValueError: An argument is not legal.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} has no admission")

    async def get_admission(self, run: str) -> AdmissionState:
        """How many groups of a run are open and how many wait, which ones are open, and what ``set_admission`` has set.

        Args:
            run: The ``lightning.run`` of the rollouts' metadata.

        Returns:
            All at one moment. A run that nobody has named has no groups, and nothing bounds it.

        Raises:
            ValueError: ``run`` is empty.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} has no admission")

    async def query_admissions(self) -> list[Admission]:
        """What ``set_admission`` has set, for each run that it bounds.

        Returns:
            By run.

        Raises:
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} has no admission")

    # --- Deleting ----------------------------------------------------------------------------------------------------

    async def delete_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        older_than: float | None = None,
        status_in: Sequence[RolloutStatus] | None = None,
        **filters: Unpack[RolloutFilters],
    ) -> list[str]:
        """Delete rollouts with their attempts and spans, to free what they take.

        Late reports on a deleted rollout are refused as for any unknown one, and a wait for it goes on without it.
        Great numbers are deleted some at a time, and other calls get their turn in between.

        Args:
            rollout_ids: Only these. This or ``older_than`` has to be given.
            older_than: Only those that have been terminal for so many seconds, or longer.
            status_in: Only those in one of these statuses.
            filters: Any of :class:`lightning_store.model.RolloutFilters`.

        Returns:
            The ids of those that were deleted.

        Raises:
            ValueError: Neither ``rollout_ids`` nor ``older_than`` is given, or an argument is not legal.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} cannot delete rollouts")

    async def delete_workers(self, worker_ids: Sequence[str]) -> list[str]:
        """Delete workers: all of them, or on any error none. One that is mentioned again has a new record.

        Args:
            worker_ids: The workers.

        Returns:
            Those that there were, in the order given, each once.

        Raises:
            InUseError: A ValueError. A worker holds an attempt that is not over.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} deletes no workers")

    async def delete_resources(self, resources_ids: Sequence[str]) -> list[str]:
        """Delete resources: all of them, or on any error none. Rollouts that name them keep the id, and find nothing.

        Args:
            resources_ids: The ids.

        Returns:
            Those that there were, in the order given, each once.

        Raises:
            InUseError: A ValueError. They are the latest, of all or of their run, which new rollouts get.
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} deletes no resources")

    async def release_worker(self, worker_id: str) -> Worker | None:
        """Note that a worker ends: it holds nothing from now on, and is unknown until it asks for work again.

        An attempt that it held goes on, and is given up at its deadlines unless its outcome is reported.

        Args:
            worker_id: The worker.

        Returns:
            The worker; None if it was never mentioned.

        Raises:
            UnsupportedError: This store cannot.
        """
        raise UnsupportedError(f"{type(self).__name__} releases no workers")
