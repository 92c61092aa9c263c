"""List replies: rows of a query cut into messages that stay below the limits on rows and bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import Message

from lightning_store.errors import InvalidArgumentError
from lightning_store.loops import Slicer
from lightning_store.model import LazyRows
from lightning_store.queries import Query
from lightning_store.v1.query_pb2 import StreamQueryResponse
from lightning_store.wire.frames import with_rows
from lightning_store.wire.queries import page_window

Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class Listing(Generic[Reply]):
    """One kind of List call."""

    rows_field: str
    """Of the reply and, by the same name, of the messages of StreamQuery."""
    reply: type[Reply]
    query_of: Callable[[Any], Query[Any]]
    """The query of a request; may raise InvalidArgumentError."""
    run: Callable[[Any], Awaitable[Any]]
    """The rows of a query, with their ``items`` and ``total``."""
    encode: Callable[[Any], bytes]
    """A row as its serialized message."""


@dataclass(frozen=True, slots=True)
class PageLimits:
    """What one message may hold, unless a single row is larger."""

    rows: int
    bytes: int


async def first_page(
    listing: Listing[Reply], request: Any, limits: PageLimits, place: AbstractAsyncContextManager[None]
) -> Reply:
    """The reply to a unary List call: the page at ``page_token``, and the token of the next if there is one.

    The rows are looked for in ``place``.

    Replies can only be sent (see ``lightning_store.wire.frames``): their rows are bytes, which stand for messages.
    """
    window = page_window(request, limits.rows)
    query = replace(listing.query_of(request), limit=window.limit, offset=window.offset)
    async with place:
        result = await listing.run(query)
    rows: list[bytes] = await anext(batches(listing.encode, result.items, limits), [])
    next_page_token = window.next_page_token(len(rows), result.total)
    reply = cast(Any, listing.reply)(total=result.total, next_page_token=next_page_token)
    return cast(Reply, with_rows(reply, listing.rows_field, rows))


def all_pages(
    listing: Listing[Any], request: Any, limits: PageLimits, place: AbstractAsyncContextManager[None]
) -> AsyncIterator[StreamQueryResponse]:
    """The whole result of a List request, as ``stream_rows`` has it."""
    if request.page_token:
        message = "page_token is for the List methods; a stream has the whole result, so leave it empty"
        raise InvalidArgumentError(message, field="page_token")
    rows_max = page_window(request, limits.rows).page_rows
    return stream_rows(listing, listing.query_of(request), PageLimits(rows_max, limits.bytes), place)


async def stream_rows(
    listing: Listing[Any], query: Query[Any], limits: PageLimits, place: AbstractAsyncContextManager[None]
) -> AsyncIterator[StreamQueryResponse]:
    """All rows of a query, taken at one moment, as one reply after another; at least one, for the total.

    The rows are looked for in ``place``.
    """
    async with place:
        result = await listing.run(query)
    if not result.items:
        yield StreamQueryResponse(total=result.total)
    async for rows in batches(listing.encode, result.items, limits):
        yield with_rows(StreamQueryResponse(total=result.total), listing.rows_field, rows)


async def batches(
    encode: Callable[[Any], bytes], items: Sequence[Any], limits: PageLimits
) -> AsyncIterator[list[bytes]]:
    """The rows, serialized, in runs within the limits; a row over the limit is a run of its own.

    A long result is converted a slice at a time, and other calls get their turn in between.
    """
    batch: list[bytes] = []
    size_bytes = 0
    slicer = Slicer()
    for item in items.each() if isinstance(items, LazyRows) else items:  # of a long result one is in memory at a time
        if slicer.is_over():
            await slicer.next_turn()
        row = encode(item)
        size_bytes += len(row)
        if batch and (size_bytes > limits.bytes or len(batch) == limits.rows):
            yield batch
            batch, size_bytes = [], len(row)
        batch.append(row)
    if batch:
        yield batch
