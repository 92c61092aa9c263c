"""List replies: rows of a query cut into messages that stay below the limits on rows and bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from lightning_store.errors import InvalidArgumentError
from lightning_store.wire.queries import page_window

Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class Listing(Generic[Reply]):
    """One kind of List call."""

    rows_field: str
    """Of the reply and, by the same name, of the oneofs of StreamQuery."""
    reply: type[Reply]
    arguments: Callable[[Any], Mapping[str, Any]]
    """The keywords of ``query``, from the request; may raise InvalidArgumentError."""
    query: Callable[..., Awaitable[Any]]
    """The rows, with their ``items`` and ``total``."""
    to_proto: Callable[[Any], Message]


@dataclass(frozen=True, slots=True)
class PageLimits:
    """What one message may hold, unless a single row is larger."""

    rows: int
    bytes: int


async def first_page(listing: Listing[Reply], request: Any, limits: PageLimits) -> Reply:
    """The reply to a unary List call: the page at ``page_token``, and the token of the next if there is one."""
    window = page_window(request, limits.rows)
    arguments = {**listing.arguments(request), "limit": window.limit, "offset": window.offset}
    result = await listing.query(**arguments)
    items = next(_batches(map(listing.to_proto, result.items), limits), [])
    next_page_token = window.next_page_token(len(items), result.total)
    return _reply(listing, items, total=result.total, next_page_token=next_page_token)


async def all_pages(listing: Listing[Reply], request: Any, limits: PageLimits) -> Iterator[Reply]:
    """The whole result, taken at one moment, as one reply after another; at least one, for the total."""
    if request.page_token:
        message = "page_token is for the List methods; a stream has the whole result, so leave it empty"
        raise InvalidArgumentError(message, field="page_token")
    rows_max = page_window(request, limits.rows).page_rows
    result = await listing.query(**listing.arguments(request))
    return _replies(listing, result.items, result.total, PageLimits(rows_max, limits.bytes))


def _replies(listing: Listing[Reply], items: Sequence[Any], total: int, limits: PageLimits) -> Iterator[Reply]:
    if not items:
        yield _reply(listing, [], total=total)
    for batch in _batches(map(listing.to_proto, items), limits):
        yield _reply(listing, batch, total=total)


def _reply(listing: Listing[Reply], rows: Sequence[Message], **fields: Any) -> Reply:
    return listing.reply(**{listing.rows_field: rows}, **fields)


def _batches(messages: Iterable[Message], limits: PageLimits) -> Iterator[list[Message]]:
    """Runs of messages within the limits; a message over the limit is a run of its own."""
    batch: list[Message] = []
    size_bytes = 0
    for message in messages:
        message_bytes = message.ByteSize()
        if batch and (len(batch) == limits.rows or size_bytes + message_bytes > limits.bytes):
            yield batch
            batch, size_bytes = [], 0
        batch.append(message)
        size_bytes += message_bytes
    if batch:
        yield batch
