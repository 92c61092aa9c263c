"""The calls that are measured, written once against ``LightningStore`` for every side.

A workload makes items (what a call needs: arguments, and data stored beforehand) outside of the measurement, and then
makes one call with one item. It checks each answer, cheaply: a call that did nothing must not pass for a fast one.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from benchmarks.reference import (
    ANSWER,
    OUTPUT_TOKENS,
    RESPONSE_TOKENS,
    TOKENS,
    rollout_input,
    span_fields,
    trainer_span_fields,
)
from benchmarks.rounds import WrongAnswerError
from benchmarks.stores import Dialect

if TYPE_CHECKING:
    from lightning_store import AttemptedRollout, LightningStore, Rollout, Span

SPANS_A_BATCH: Final = 100
ROLLOUTS_A_QUERY: Final = 1_000
SPANS_A_LIFECYCLE: Final = 4
TRAINER_SPANS: Final = 2
"""What a call of a trainer's cell stores or reads."""
BATCH_ROLLOUTS: Final = 128
BATCH_SPANS: Final = 3
"""Of each rollout of a batch."""
ATTEMPTS_AT_WORK: Final = 256
"""Attempts that spans and sequence numbers are spread over: as many runners at work."""
QUERIED_ROLLOUTS: Final = 32
ENQUEUED_AT_ONCE: Final = 500


@dataclass
class Subject:
    """The store that is measured, and what its workloads share."""

    store: LightningStore
    dialect: Dialect
    endpoint: str | None
    """``host:port`` of the server; None in process."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_span(self, attempt: AttemptedRollout) -> Span:
        """A reference span of this attempt, with a span id that is new to the store."""
        return self._span(span_fields, attempt)

    def new_trainer_span(self, attempt: AttemptedRollout) -> Span:
        """The same with the tokens of a prompt and of its response."""
        return self._span(trainer_span_fields, attempt)

    def _span(self, fields: Callable[[str, str, int], dict[str, Any]], attempt: AttemptedRollout) -> Span:
        return self.dialect.span.model_validate(
            fields(attempt.rollout_id, attempt.attempt.attempt_id, next(self._numbers))
        )

    def new_input(self) -> dict[str, Any]:
        """The input of a new rollout."""
        return rollout_input(next(self._numbers))

    async def enqueue(self, count: int) -> list[Rollout]:
        """Put so many rollouts into the queue."""
        queued: list[Rollout] = []
        while len(queued) < count:
            some = min(ENQUEUED_AT_ONCE, count - len(queued))
            requests = [self.dialect.enqueue_request(input=self.new_input()) for _ in range(some)]
            queued.extend(await self.store.enqueue_many_rollouts(requests))
        return queued

    async def claim(self, count: int) -> list[AttemptedRollout]:
        """Put so many rollouts into the queue and claim as many."""
        await self.enqueue(count)
        claimed: list[AttemptedRollout] = []
        while len(claimed) < count:
            some = await self.store.dequeue_many_rollouts(limit=min(ENQUEUED_AT_ONCE, count - len(claimed)))
            if not some:
                raise WrongAnswerError(f"{len(claimed)} of {count} queued rollouts could be claimed")
            claimed.extend(some)
        return claimed


class Workload(ABC):
    """One kind of call on one opened store."""

    consumes: ClassVar[bool] = True
    """Whether an item is good for one call only; otherwise all items are gone through in turn, without end."""
    callers_max: ClassVar[int | None] = None
    """More callers than so many are not measured. None: any number."""
    items_max: ClassVar[int] = 20_000
    """Items at hand for a round at most; when they are used up the round ends."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.store = subject.store
        self._stock: deque[Any] = deque()

    async def items(self, count: int) -> Iterator[Any]:
        """Items for about so many calls. Those that are not taken are there for the next round."""
        missing = min(count, self.items_max) - len(self._stock) if self.consumes or not self._stock else 0
        if missing > 0:
            self._stock.extend(await self.make(missing))
        return _taken_from(self._stock) if self.consumes else itertools.cycle(self._stock)

    @abstractmethod
    async def make(self, count: int) -> Sequence[Any]:
        """So many new items; what does not consume them decides by itself how many."""

    @abstractmethod
    async def call(self, item: Any, caller: int) -> None:
        """The call that is measured. WrongAnswerError if it returns something else than it should."""

    async def close(self) -> None:
        """Give back what the workload holds."""
        self._stock.clear()


class Enqueue(Workload):
    """enqueue_rollout"""

    async def make(self, count: int) -> Sequence[Any]:
        return [self.subject.new_input() for _ in range(count)]

    async def call(self, item: Any, caller: int) -> None:
        rollout = await self.store.enqueue_rollout(input=item)
        _expect(rollout.status == "queuing", "enqueue_rollout", rollout.status)


class Dequeue(Workload):
    """dequeue_rollout of a queue that is never empty"""

    async def make(self, count: int) -> Sequence[Any]:
        return await self.subject.enqueue(count)

    async def call(self, item: Any, caller: int) -> None:
        claimed = await self.store.dequeue_rollout(worker_id=f"runner-{caller}")
        _expect(claimed is not None, "dequeue_rollout", "None, though the queue is not empty")


class UpdateAttempt(Workload):
    """update_attempt that ends an attempt as succeeded"""

    async def make(self, count: int) -> Sequence[Any]:
        return await self.subject.claim(count)

    async def call(self, item: Any, caller: int) -> None:
        attempt = await self.store.update_attempt(item.rollout_id, item.attempt.attempt_id, status="succeeded")
        _expect(attempt.status == "succeeded", "update_attempt", attempt.status)


class NextSequenceId(Workload):
    """get_next_span_sequence_id"""

    consumes = False

    async def make(self, count: int) -> Sequence[Any]:
        return await self.subject.claim(ATTEMPTS_AT_WORK)

    async def call(self, item: Any, caller: int) -> None:
        number = await self.store.get_next_span_sequence_id(item.rollout_id, item.attempt.attempt_id)
        _expect(number >= 1, "get_next_span_sequence_id", number)


class GetRollout(Workload):
    """get_rollout_by_id of a rollout with an attempt"""

    consumes = False

    async def make(self, count: int) -> Sequence[Any]:
        return await self.subject.claim(ATTEMPTS_AT_WORK)

    async def call(self, item: Any, caller: int) -> None:
        rollout = await self.store.get_rollout_by_id(item.rollout_id)
        _expect(rollout is not None and rollout.rollout_id == item.rollout_id, "get_rollout_by_id", rollout)


class AddSpan(Workload):
    """add_span of the reference span"""

    _attempts: Sequence[AttemptedRollout] = ()

    async def make(self, count: int) -> Sequence[Any]:
        self._attempts = self._attempts or await self.subject.claim(ATTEMPTS_AT_WORK)
        return [self.subject.new_span(attempt) for attempt in itertools.islice(itertools.cycle(self._attempts), count)]

    async def call(self, item: Any, caller: int) -> None:
        added = await self.store.add_span(item)
        _expect(added is not None and added.span_id == item.span_id, "add_span", added)


class AddManySpans(Workload):
    """add_many_spans of 100 reference spans of one attempt"""

    items_max = 200

    _attempts: Sequence[AttemptedRollout] = ()

    async def make(self, count: int) -> Sequence[Any]:
        self._attempts = self._attempts or await self.subject.claim(ATTEMPTS_AT_WORK)
        attempts = itertools.islice(itertools.cycle(self._attempts), count)
        return [[self.subject.new_span(attempt) for _ in range(SPANS_A_BATCH)] for attempt in attempts]

    async def call(self, item: Any, caller: int) -> None:
        added = await self.store.add_many_spans(item)
        _expect(len(added) == SPANS_A_BATCH, "add_many_spans", f"{len(added)} of {SPANS_A_BATCH} spans")


class AddManySpansOtlp(Workload):
    """100 reference spans in one OTLP/HTTP request to Agent Lightning's server; the request is encoded beforehand"""

    items_max = 200

    _attempts: Sequence[AttemptedRollout] = ()
    _session: Any = None

    async def make(self, count: int) -> Sequence[Any]:
        self._attempts = self._attempts or await self.subject.claim(ATTEMPTS_AT_WORK)
        attempts = itertools.islice(itertools.cycle(self._attempts), count)
        return [_export_request([self.subject.new_span(attempt) for _ in range(SPANS_A_BATCH)]) for attempt in attempts]

    async def call(self, item: Any, caller: int) -> None:
        if self._session is None:
            self._session = importlib.import_module("aiohttp").ClientSession()  # comes with Agent Lightning
        url = f"http://{self.subject.endpoint}/v1/traces"
        async with self._session.post(url, data=item, headers={"Content-Type": "application/x-protobuf"}) as reply:
            await reply.read()
            _expect(reply.status == 200, "POST /v1/traces", f"status {reply.status}")

    async def close(self) -> None:
        await super().close()
        if self._session is not None:
            await self._session.close()


def _export_request(spans: Sequence[Span]) -> bytes:
    """An OTLP request with these spans of one attempt. The receiver numbers them."""
    from lightning_store.model import Span as OurSpan
    from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID
    from lightning_store.spans.otlp.requests import export_request

    request = export_request(OurSpan.model_validate(span.model_dump()) for span in spans)
    [group] = request.resource_spans
    for key, value in ((ROLLOUT_ID, spans[0].rollout_id), (ATTEMPT_ID, spans[0].attempt_id)):
        group.resource.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


class QuerySpans(Workload):
    """query_spans of a rollout that has 100; every field of each is read"""

    consumes = False

    async def make(self, count: int) -> Sequence[Any]:
        claimed = await self.subject.claim(QUERIED_ROLLOUTS)
        for attempt in claimed:
            await self.store.add_many_spans([self.subject.new_span(attempt) for _ in range(SPANS_A_BATCH)])
        return claimed

    async def call(self, item: Any, caller: int) -> None:
        await read_spans(self.store, item.rollout_id, SPANS_A_BATCH)


class QueryRollouts(Workload):
    """query_rollouts of the 1,000 rollouts that are stored, each with an attempt; every field of each is read"""

    consumes = False

    async def make(self, count: int) -> Sequence[Any]:
        return await self.subject.claim(ROLLOUTS_A_QUERY)

    async def call(self, item: Any, caller: int) -> None:
        found = await self.store.query_rollouts(limit=ROLLOUTS_A_QUERY)
        _expect(len(found) == ROLLOUTS_A_QUERY, "query_rollouts", f"{len(found)} of {ROLLOUTS_A_QUERY} rollouts")
        for rollout in found:
            fields = rollout.model_dump()
            _expect(fields["input"]["answer"] == ANSWER and fields["attempt"] is not None, "query_rollouts", fields)


class TrainerAddSpan(Workload):
    """add_span of two trainer's spans of one attempt, one after the other"""

    items_max = 1_000

    _attempts: Sequence[AttemptedRollout] = ()

    async def make(self, count: int) -> Sequence[Any]:
        self._attempts = self._attempts or await self.subject.claim(ATTEMPTS_AT_WORK)
        attempts = itertools.islice(itertools.cycle(self._attempts), count)
        return [[self.subject.new_trainer_span(attempt) for _ in range(TRAINER_SPANS)] for attempt in attempts]

    async def call(self, item: Any, caller: int) -> None:
        for span in item:
            added = await self.store.add_span(span)
            _expect(added is not None and added.span_id == span.span_id, "add_span", added)


class TrainerQuerySpans(Workload):
    """query_spans of a rollout that has two trainer's spans; every field of each is read"""

    consumes = False

    async def make(self, count: int) -> Sequence[Any]:
        claimed = await self.subject.claim(QUERIED_ROLLOUTS)
        for attempt in claimed:
            await self.store.add_many_spans([self.subject.new_trainer_span(attempt) for _ in range(TRAINER_SPANS)])
        return claimed

    async def call(self, item: Any, caller: int) -> None:
        for fields in await read_spans(self.store, item.rollout_id, TRAINER_SPANS):
            ids = fields["attributes"]["response_token_ids"]
            _expect(len(ids) == RESPONSE_TOKENS, "query_spans", f"{len(ids)} of {RESPONSE_TOKENS} token ids")


class TrainerQueryBatch(Workload):
    """The tokens of a batch of 128 rollouts that have three trainer's spans each, all decoded"""

    consumes = False
    callers_max = 1

    async def make(self, count: int) -> Sequence[Any]:
        claimed = await self.subject.claim(BATCH_ROLLOUTS)
        for attempt in claimed:
            await self.store.add_many_spans([self.subject.new_trainer_span(attempt) for _ in range(BATCH_SPANS)])
        return [[attempt.rollout_id for attempt in claimed]]

    async def call(self, item: Any, caller: int) -> None:
        if hasattr(self.store, "query_many_spans"):
            read: Iterable[Sequence[Span]] = (await self.store.query_many_spans(item, attributes=list(TOKENS))).values()
        else:
            read = await asyncio.gather(*(self.store.query_spans(rollout_id, "latest") for rollout_id in item))
        tokens = [span.attributes["response_token_ids"] for spans in read for span in spans]
        found = sum(map(len, tokens))
        expected = BATCH_ROLLOUTS * BATCH_SPANS * RESPONSE_TOKENS
        _expect(found == expected, "query_many_spans", f"{found} of {expected} token ids")


class Lifecycle(Workload):
    """A rollout from queue to outcome: enqueue, dequeue, 4 x add_span, update_attempt, get, query_spans; spans read"""

    async def make(self, count: int) -> Sequence[Any]:
        return [self.subject.new_input() for _ in range(count)]

    async def call(self, item: Any, caller: int) -> None:
        await self.store.enqueue_rollout(input=item)
        claimed = await self.store.dequeue_rollout(worker_id=f"runner-{caller}")
        if claimed is None:
            raise WrongAnswerError("dequeue_rollout: None, though the queue is not empty")
        for _ in range(SPANS_A_LIFECYCLE):
            await self.store.add_span(self.subject.new_span(claimed))
        await self.store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        rollout = await self.store.get_rollout_by_id(claimed.rollout_id)
        _expect(rollout is not None and rollout.status == "succeeded", "get_rollout_by_id", rollout)
        await read_spans(self.store, claimed.rollout_id, SPANS_A_LIFECYCLE)


async def read_spans(store: LightningStore, rollout_id: str, count: int) -> list[dict[str, Any]]:
    """All fields of all spans of a rollout that has so many: what a store decodes late is decoded here."""
    spans = await store.query_spans(rollout_id)
    _expect(len(spans) == count, "query_spans", f"{len(spans)} of {count} spans")
    read = [span.model_dump() for span in spans]
    for fields in read:
        _expect(fields["attributes"]["gen_ai.usage.output_tokens"] == OUTPUT_TOKENS, "query_spans", fields)
    return read


def _taken_from(stock: deque[Any]) -> Iterator[Any]:
    while stock:
        yield stock.popleft()


def _expect(holds: bool, method: str, got: object) -> None:
    if not holds:
        raise WrongAnswerError(f"{method}: {got}")


WORKLOADS: Final[dict[str, type[Workload]]] = {
    "enqueue": Enqueue,
    "dequeue": Dequeue,
    "update_attempt": UpdateAttempt,
    "get_next_span_sequence_id": NextSequenceId,
    "get_rollout_by_id": GetRollout,
    "add_span": AddSpan,
    "add_many_spans": AddManySpans,
    "add_many_spans_otlp": AddManySpansOtlp,
    "query_spans": QuerySpans,
    "query_rollouts": QueryRollouts,
    "trainer_add_span": TrainerAddSpan,
    "trainer_query_spans": TrainerQuerySpans,
    "trainer_query_batch": TrainerQueryBatch,
    "lifecycle": Lifecycle,
}
