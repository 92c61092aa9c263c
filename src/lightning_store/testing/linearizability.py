"""Linearizability: whether what concurrent callers saw can be explained by one call after the other.

A history is what several clients asked a store and what they got, with the order in which calls began and returned. It
is linearizable if every call can be given one moment between its beginning and its return such that, taken in the order
of those moments, a plain sequential model answers each call as the store did. A call that failed on the way is
open-ended: it may have taken effect at any time since it began, once, or never.

``History`` records, through a ``RecordedStore`` for each client; ``StoreModel`` is the contract in its plainest form;
``check_history`` searches for the moments, after Wing and Gong ("Testing and Verifying Concurrent Objects", 1993), with
the memory of states seen that Lowe added ("Testing for Linearizability", 2017).
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from lightning_store.errors import (
    CallCancelledError,
    InternalError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from lightning_store.model import (
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    PromptTemplate,
    ResourcesUpdate,
    RolloutConfig,
    RolloutStatus,
    Span,
)
from lightning_store.store import LightningStore

S = TypeVar("S", bound=Hashable)

# --- Histories -------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """What was asked."""

    name: str
    args: tuple[Hashable, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.args))})"


class Raised(NamedTuple):
    """The result of a call that the store refused: the ``reason`` of its error."""

    reason: str


@dataclass(frozen=True)
class Operation:
    """One call of one client. Moments are places in the order of all beginnings and returns of a history."""

    client: str
    call: Call
    began: int
    returned: int | None = None
    """None for a call that is open-ended."""
    result: Hashable = None

    def __str__(self) -> str:
        came = "failed on the way" if self.returned is None else f"gave {self.result!r}"
        return f"[{self.began}..{'' if self.returned is None else self.returned}] {self.client}: {self.call} {came}"


OPEN_ENDED: Final = (StoreUnavailableError, StoreTimeoutError, CallCancelledError, InternalError)
"""Errors that leave open whether the call took effect, and when."""


class History:
    """Records the operations of any number of clients."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        """In the order in which they began. A call that is under way is open-ended so far."""
        self.rollout_ids: dict[str, str] = {}
        """The ids of rollouts that clients have been told of, by their names in the history."""
        self.attempt_ids: dict[tuple[str, int], str] = {}
        """The ids of attempts, by rollout and number."""
        self._moments = itertools.count(1)

    async def record(
        self, client: str, call: Call, answer: Awaitable[Any], view: Callable[[Any], Hashable]
    ) -> Hashable | None:
        """Await ``answer``, the store's to ``call``; what ``view`` makes of it, which is what counts as the result.

        ``Raised`` if the store refused the call, and None if it failed on the way.
        """
        place = len(self.operations)
        self.operations.append(Operation(client, call, next(self._moments)))
        try:
            result = view(await answer)
        except OPEN_ENDED:
            return None
        except StoreError as error:
            result = Raised(error.reason)
        self.operations[place] = replace(self.operations[place], returned=next(self._moments), result=result)
        return result

    def know(self, rollout: AttemptedRollout) -> tuple[str, int]:
        """Note the ids of an attempt that a client was told of; its name and number in the history."""
        name, number = str(rollout.input), rollout.attempt.sequence_id
        self.rollout_ids[name] = rollout.rollout_id
        self.attempt_ids[name, number] = rollout.attempt.attempt_id
        return name, number


# --- The search ------------------------------------------------------------------------------------------------------


class SequentialModel(Protocol[S]):
    """What a store should do, one call at a time."""

    @property
    def initial(self) -> S:
        """The state of an empty store."""
        ...

    def apply(self, state: S, call: Call) -> tuple[S, Hashable]:
        """The state after ``call`` and its result. ``state`` itself does not change."""
        ...


class SearchLimitError(RuntimeError):
    """The search came to no end within its limit: the history may or may not be linearizable."""


@dataclass(frozen=True)
class Verdict:
    """What ``check_history`` found."""

    linearizable: bool
    order: Sequence[Operation]
    """The operations in an order that explains the history; as many of them as could be explained if not all can.
    Open-ended ones that never took effect are missing."""
    states: int
    """How many states the search went through."""
    explanation: str

    def __bool__(self) -> bool:
        return self.linearizable


def check_history(history: Sequence[Operation], model: SequentialModel[Any], *, states_max: int = 500_000) -> Verdict:
    """Whether ``history`` can be explained by ``model``. SearchLimitError if it takes more than ``states_max`` states.

    A search that sets out in the wrong direction can take a thousand times as long as another, so two are tried for a
    while before one goes on to the end.
    """
    for limit in (states_max // 20, states_max):
        for sort_key in (_as_if_returned_at_once, _as_if_never_returned):
            try:
                return _Search(sorted(history, key=sort_key), model, limit).run()
            except SearchLimitError:
                continue
    raise SearchLimitError(f"no verdict on {len(history)} operations after {states_max} states")


def _as_if_returned_at_once(operation: Operation) -> int:
    """The order of returns, which mostly is one that explains; open-ended operations where they began."""
    return operation.began if operation.returned is None else operation.returned


def _as_if_never_returned(operation: Operation) -> tuple[bool, int]:
    """The same, with open-ended operations only when nothing else will do."""
    return operation.returned is None, _as_if_returned_at_once(operation)


class _Node(NamedTuple, Generic[S]):
    """A place in the search: the state after the operations in ``done`` (a bit set), and what may come next."""

    done: int
    state: S
    choices: Iterator[int]


class _Search(Generic[S]):
    """Depth first over the orders that respect real time: an operation that returned before another began is first."""

    def __init__(self, operations: Sequence[Operation], model: SequentialModel[S], states_max: int) -> None:
        """What can come next is tried in the order of ``operations``."""
        self._operations = operations
        self._completed = sum(1 << i for i, one in enumerate(self._operations) if one.returned is not None)
        self._model = model
        self._states_max = states_max
        self._seen: set[tuple[int, S]] = set()
        self._longest: list[int] = []
        self._stuck: tuple[int, S] = (0, model.initial)

    def run(self) -> Verdict:
        path: list[int] = []
        nodes = [self._node(0, self._model.initial)]
        while nodes:
            node = nodes[-1]
            if node.done & self._completed == self._completed:
                return self._verdict(True, path)
            following = next((found for choice in node.choices if (found := self._follow(node, choice))), None)
            if following is None:
                nodes.pop()
                if path:
                    path.pop()
                continue
            choice, done, state = following
            path.append(choice)
            nodes.append(self._node(done, state))
            if self._explained(done) > self._explained(self._stuck[0]):
                self._longest, self._stuck = list(path), (done, state)
        return self._verdict(False, self._longest)

    def _node(self, done: int, state: S) -> _Node[S]:
        """What may be next: whatever began before the first return among the operations that are left."""
        left = [i for i in range(len(self._operations)) if not done >> i & 1]
        first_return = min((end for i in left if (end := self._operations[i].returned) is not None), default=0)
        return _Node(done, state, iter([i for i in left if self._operations[i].began < first_return]))

    def _follow(self, node: _Node[S], choice: int) -> tuple[int, int, S] | None:
        """The choice with what holds after it; None if the model answers otherwise, or if it was tried already."""
        operation = self._operations[choice]
        state, result = self._model.apply(node.state, operation.call)
        if operation.returned is None and state == node.state:
            return None  # it changes nothing here, so it may as well come later or never
        if operation.returned is not None and result != operation.result:
            return None
        done = node.done | 1 << choice
        if (done, state) in self._seen:
            return None
        if len(self._seen) >= self._states_max:
            raise SearchLimitError
        self._seen.add((done, state))
        return choice, done, state

    def _explained(self, done: int) -> int:
        return (done & self._completed).bit_count()

    def _verdict(self, linearizable: bool, path: list[int]) -> Verdict:
        order = [self._operations[i] for i in path]
        lines = ["This order explains what was seen:" if linearizable else "No order explains what was seen. So far:"]
        lines += [f"  {operation}" for operation in order]
        if not linearizable:
            choices = [self._operations[i] for i in self._node(*self._stuck).choices]
            lines += ["and then each of these is wrong:"]
            lines += [self._why_not(one) for one in choices if one.returned is not None]
        return Verdict(linearizable, order, len(self._seen), "\n".join(lines))

    def _why_not(self, operation: Operation) -> str:
        _, result = self._model.apply(self._stuck[1], operation.call)
        return f"  {operation}, but should give {result!r}"


# --- The store as a model --------------------------------------------------------------------------------------------

QUEUED: Final = ("queuing", "requeuing")
TERMINAL: Final = ("failed", "succeeded", "cancelled")
MAX_ATTEMPTS: Final = 2
"""Of each rollout in a history."""
RETRIED: Final[tuple[AttemptStatus, ...]] = ("failed", "unresponsive")
"""The outcomes after which each rollout in a history is retried."""


class ModelRollout(NamedTuple):
    """One rollout."""

    status: str = "queuing"
    attempts: tuple[str, ...] = ()
    """The status of each attempt, by number from 1."""
    last_number: int = 0
    """The span number that was given last."""
    spans: frozenset[tuple[int, str]] = frozenset()
    """Attempt number and span id of each."""


class ModelState(NamedTuple):
    """All that a store holds. Rollouts and resources are sorted, so that equal states are equal."""

    rollouts: tuple[tuple[str, ModelRollout], ...] = ()
    queue: tuple[str, ...] = ()
    resources: tuple[tuple[str, int, str], ...] = ()
    """Id, version and content."""
    latest_resources: str | None = None

    def rollout(self, name: str) -> ModelRollout | None:
        return next((rollout for known, rollout in self.rollouts if known == name), None)

    def with_rollout(self, name: str, rollout: ModelRollout) -> ModelState:
        others = [item for item in self.rollouts if item[0] != name]
        return self._replace(rollouts=tuple(sorted([*others, (name, rollout)])))

    def moved(self, name: str, rollout: ModelRollout, *, leave_queue: bool = True) -> ModelState:
        """With ``rollout``, whose status may be new, and the queue as that status asks."""
        queue = self.queue
        if rollout.status in QUEUED:
            queue = queue if name in queue else (*queue, name)
        elif leave_queue:
            queue = tuple(queued for queued in queue if queued != name)
        return self.with_rollout(name, rollout)._replace(queue=queue)


NOT_FOUND: Final = Raised("ROLLOUT_NOT_FOUND")
NO_ATTEMPT: Final = Raised("ATTEMPT_NOT_FOUND")


class StoreModel:
    """The queue, attempts, statuses, span numbers and resources of a store that is not strict; no deadlines.

    Rollouts go by the name that is their input, attempts by rollout and number. Its calls are those of RecordedStore.
    """

    @property
    def initial(self) -> ModelState:
        return ModelState()

    def apply(self, state: ModelState, call: Call) -> tuple[ModelState, Hashable]:
        method: Callable[..., tuple[ModelState, Hashable]] = getattr(self, call.name)
        return method(state, *call.args)

    def enqueue(self, state: ModelState, *names: str) -> tuple[ModelState, Hashable]:
        for name in names:
            state = state.moved(name, ModelRollout())
        return state, ("queuing",) * len(names)

    def claim(self, state: ModelState, limit: int) -> tuple[ModelState, Hashable]:
        claimed: list[tuple[str, Hashable]] = []
        for name in state.queue:
            rollout = state.rollout(name)
            if rollout is not None and rollout.status in QUEUED and len(claimed) < limit:
                state, number = self.begin_attempt(state, name)
                claimed.append((name, number))
        return state, tuple(claimed)

    def begin_attempt(self, state: ModelState, name: str) -> tuple[ModelState, Hashable]:
        rollout = state.rollout(name)
        if rollout is None:
            return state, NOT_FOUND
        rollout = rollout._replace(status="preparing", attempts=(*rollout.attempts, "preparing"))
        return state.moved(name, rollout), len(rollout.attempts)

    def report(self, state: ModelState, name: str, number: int, status: str) -> tuple[ModelState, Hashable]:
        rollout = state.rollout(name)
        if rollout is None or number > len(rollout.attempts):
            return state, NOT_FOUND if rollout is None else NO_ATTEMPT
        rollout = rollout._replace(attempts=_with(rollout.attempts, number, status))
        if number < len(rollout.attempts):
            return state.with_rollout(name, rollout), status
        follows = status
        if status in RETRIED:
            follows = "requeuing" if number < MAX_ATTEMPTS else "failed"
        return state.moved(name, rollout._replace(status=follows)), status

    def set_status(self, state: ModelState, name: str, status: str) -> tuple[ModelState, Hashable]:
        rollout = state.rollout(name)
        if rollout is None:
            return state, NOT_FOUND
        # A terminal status leaves the queue; preparing and running keep the place in it.
        return state.moved(name, rollout._replace(status=status), leave_queue=status in TERMINAL), status

    def look(self, state: ModelState, name: str) -> tuple[ModelState, Hashable]:
        rollout = state.rollout(name)
        return state, None if rollout is None else (rollout.status, len(rollout.attempts), *rollout.attempts[-1:])

    def next_numbers(self, state: ModelState, name: str, count: int) -> tuple[ModelState, Hashable]:
        rollout = state.rollout(name)
        if rollout is None:
            return state, NOT_FOUND
        last = rollout.last_number
        rollout = rollout._replace(last_number=last + count)
        return state.with_rollout(name, rollout), tuple(range(last + 1, last + count + 1))

    def add_span(
        self, state: ModelState, name: str, number: int, span_id: str, sequence_id: int
    ) -> tuple[ModelState, Hashable]:
        rollout = state.rollout(name)
        if rollout is None or number > len(rollout.attempts):
            return state, NOT_FOUND if rollout is None else NO_ATTEMPT
        key = (number, span_id)
        if key in rollout.spans:
            return state, False
        last_number = max(rollout.last_number, sequence_id)
        status = rollout.status
        if rollout.attempts[number - 1] in ("preparing", "unresponsive"):
            rollout = rollout._replace(attempts=_with(rollout.attempts, number, "running"))
            if number == len(rollout.attempts) and status in ("preparing", "requeuing"):
                status = "running"
        rollout = rollout._replace(last_number=last_number, spans=rollout.spans | {key})
        if status == rollout.status:
            return state.with_rollout(name, rollout), True
        return state.moved(name, rollout._replace(status=status)), True

    def publish(self, state: ModelState, resources_id: str, content: str) -> tuple[ModelState, Hashable]:
        version = 1 + next((version for known, version, _ in state.resources if known == resources_id), 0)
        others = [item for item in state.resources if item[0] != resources_id]
        resources = tuple(sorted([*others, (resources_id, version, content)]))
        return state._replace(resources=resources, latest_resources=resources_id), version

    def latest_resources(self, state: ModelState) -> tuple[ModelState, Hashable]:
        return state, next((item for item in state.resources if item[0] == state.latest_resources), None)


def _with(attempts: tuple[str, ...], number: int, status: str) -> tuple[str, ...]:
    return (*attempts[: number - 1], status, *attempts[number:])


# --- The store, recorded ---------------------------------------------------------------------------------------------


class RecordedStore:
    """A store as one client of a history calls it, one call at a time.

    Each method makes one call of ``store`` and records it; it returns what ``History.record`` returns. Rollouts go by
    names, which must be new for each ``enqueue``; the other methods know those that ``history`` has the ids of.
    """

    def __init__(self, history: History, client: str, store: LightningStore) -> None:
        self._history = history
        self._client = client
        self._store = store

    async def _record(self, call: Call, answer: Awaitable[Any], view: Callable[[Any], Hashable]) -> Hashable | None:
        return await self._history.record(self._client, call, answer, view)

    async def enqueue(self, *names: str) -> Hashable | None:
        """Several are one batch."""
        config = RolloutConfig(max_attempts=MAX_ATTEMPTS, retry_condition=list(RETRIED))
        requests = [EnqueueRolloutRequest(input=name, config=config) for name in names]

        def view(rollouts: Any) -> Hashable:
            self._history.rollout_ids.update((str(rollout.input), rollout.rollout_id) for rollout in rollouts)
            return tuple(rollout.status for rollout in rollouts)

        return await self._record(Call("enqueue", names), self._store.enqueue_many_rollouts(requests), view)

    async def claim(self, limit: int = 1) -> Hashable | None:
        """Names and attempt numbers."""
        answer = self._store.dequeue_many_rollouts(limit=limit)
        return await self._record(Call("claim", (limit,)), answer, lambda all: tuple(map(self._history.know, all)))

    async def begin_attempt(self, name: str) -> Hashable | None:
        """The number of the new attempt."""
        answer = self._store.start_attempt(self._history.rollout_ids[name])
        return await self._record(Call("begin_attempt", (name,)), answer, lambda one: self._history.know(one)[1])

    async def report(self, name: str, number: int, status: AttemptStatus) -> Hashable | None:
        """The status of the attempt: preparing, running, succeeded, failed or unresponsive."""
        ids = self._history.rollout_ids[name], self._history.attempt_ids[name, number]
        answer = self._store.update_attempt(*ids, status=status)
        return await self._record(Call("report", (name, number, status)), answer, lambda attempt: attempt.status)

    async def set_status(self, name: str, status: RolloutStatus) -> Hashable | None:
        """The status of the rollout."""
        answer = self._store.update_rollout(self._history.rollout_ids[name], status=status)
        return await self._record(Call("set_status", (name, status)), answer, lambda rollout: rollout.status)

    async def look(self, name: str) -> Hashable | None:
        """Status, number of attempts, and the status of the last one if there is one."""

        def view(rollout: Any) -> Hashable:
            if not isinstance(rollout, AttemptedRollout):
                return None if rollout is None else (rollout.status, 0)
            return rollout.status, rollout.attempt.sequence_id, rollout.attempt.status

        answer = self._store.get_rollout_by_id(self._history.rollout_ids[name])
        return await self._record(Call("look", (name,)), answer, view)

    async def next_numbers(self, name: str, count: int = 1) -> Hashable | None:
        """The span numbers."""
        answer = self._store.get_many_span_sequence_ids([(self._history.rollout_ids[name], "any")] * count)
        return await self._record(Call("next_numbers", (name, count)), answer, tuple)

    async def add_span(self, name: str, number: int, span_id: str, sequence_id: int) -> Hashable | None:
        """Whether the span was stored: False for a duplicate. ``span_id`` has 16 hex digits."""
        span = Span(
            rollout_id=self._history.rollout_ids[name],
            attempt_id=self._history.attempt_ids[name, number],
            sequence_id=sequence_id,
            trace_id="0af7651916cd43dd8448eb211c80319c",
            span_id=span_id,
            name="step",
        )
        call = Call("add_span", (name, number, span_id, sequence_id))
        return await self._record(call, self._store.add_span(span), lambda stored: stored is not None)

    async def publish(self, resources_id: str, content: str) -> Hashable | None:
        """The version."""
        prompt = PromptTemplate(template=content, engine="f-string")
        answer = self._store.update_resources(resources_id, {"prompt": prompt})
        return await self._record(Call("publish", (resources_id, content)), answer, lambda update: update.version)

    async def latest_resources(self) -> Hashable | None:
        """Id, version and content; None when there are none. A call that failed on the way also gives None."""

        def view(update: ResourcesUpdate | None) -> Hashable:
            if update is None:
                return None
            [prompt] = update.resources.values()
            return update.resources_id, update.version, getattr(prompt, "template", None)

        return await self._record(Call("latest_resources"), self._store.get_latest_resources(), view)
