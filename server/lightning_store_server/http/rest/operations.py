"""What an operation of a REST interface is, and how its request is read and answered."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import Receive, Scope, Send

from lightning_store.clock import SystemClock
from lightning_store.json_text import check_values
from lightning_store.loops import Slicer
from lightning_store.wire.methods import METHODS, Repeat, Role
from lightning_store_server.access import caller_now
from lightning_store_server.http.answers import JSON, HttpError, media_type
from lightning_store_server.http.bodies import BodyReader, peer_of_http
from lightning_store_server.http.rest.calls import Call, Service
from lightning_store_server.http.rest.deliveries import CallId, Deliveries, key_of
from lightning_store_server.http.rest.errors import UnprocessableError, to_json

Handler = Callable[..., Awaitable[Any]]
Version = Literal["0.3", "0.2", "legacy"]

OBJECTS_RATIO: Final = 4
"""How many times as long as JSON is parsed a body is worked on, which becomes objects and text again."""
ID_HEADER: Final = "idempotency-key"
"""Of a request that its sender may send again: an id of the sender's making."""
OTHER_SITES: Final = frozenset({"cross-site", "same-site"})
"""Values of Sec-Fetch-Site: a browser says so of a page that is not the server's own."""


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    version: Version
    method: Literal["GET", "POST"]
    path: str
    rpc: str
    """The method of the service that it stands for, whose role it asks for; empty where it tells nothing."""
    summary: str
    handle: Handler
    """Called with the :class:`Call`, then the body and the query as far as there are any."""
    returns: Any
    """The type of the answer, for its description."""
    status: HTTPStatus = HTTPStatus.OK
    body: Any = None
    """The type of the body."""
    body_optional: bool = False
    query: Any = None
    """The type of the query's parameters."""

    @property
    def role(self) -> Role:
        """The least one that may ask for it."""
        return METHODS[self.rpc].role if self.rpc else Role.READER

    @property
    def changes(self) -> bool:
        """Whether it changes something."""
        return bool(self.rpc) and METHODS[self.rpc].repeat is not Repeat.READ

    @property
    def remembers(self) -> bool:
        """Whether a repeated one is answered from the record."""
        return bool(self.rpc) and METHODS[self.rpc].repeat is Repeat.ONCE

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Of the paths."""
        return compile_path(self.path)[0]

    @cached_property
    def body_adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.body)

    @cached_property
    def query_lists(self) -> frozenset[str]:
        """The parameters that may be given several times."""
        fields = {} if self.query is None else self.query.model_fields
        return frozenset(
            name
            for name, field in fields.items()
            if any(get_origin(one) is list for one in (field.annotation, *get_args(field.annotation)))
        )


class Rows:
    """An answer that is a list of rows, made as it is sent.

    Args:
        call: The call that asks for them.
        replies: Messages of StreamQuery; at least one comes.
        field: Theirs that has the rows.
        convert: Turns a row into its value.
        page: ``limit`` and ``offset`` to tell beside the rows; None for a plain list.
    """

    def __init__(
        self,
        call: Call,
        replies: AsyncIterator[Any],
        field: str,
        convert: Callable[[Any], Any],
        page: Mapping[str, int] | None = None,
    ) -> None:
        self._convert_row = call.convert_row
        self._replies = replies
        self._field = field
        self.convert = convert
        self._page = page
        self._first: Any = None

    async def begin(self) -> None:
        """Have the first of the rows. StoreError if that fails."""
        self._first = await anext(self._replies)

    async def parts(self) -> AsyncIterator[bytes]:
        """The answer, piece by piece."""
        yield b"[" if self._page is None else b'{"items":['
        separator, reply, slicer = b"", self._first, Slicer()
        async with aclosing(self._replies):  # type: ignore[type-var]  # it is a generator
            while reply is not None:
                piece = bytearray()
                for row in getattr(reply, self._field):
                    piece += separator + await self._convert_row(lambda one: to_json(self.convert(one)), row)
                    separator = b","
                    if slicer.is_over():
                        yield bytes(piece)
                        piece.clear()
                        await slicer.next_turn()
                yield bytes(piece)
                reply = await anext(self._replies, None)
        end = b"]"
        if self._page is not None:
            end += b"," + to_json({**self._page, "total": self._first.total})[1:]
        yield end


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all operations of one server share."""

    service: Service
    bodies: BodyReader
    deliveries: Deliveries
    origins: Sequence[str]
    """Whose pages may change something."""


class Endpoint:
    """Answers the requests for one operation. What it raises is answered by those around it."""

    def __init__(self, operation: Operation, around: Surroundings) -> None:
        self._operation = operation
        self._around = around
        self.route_path = operation.path
        """The path with the names of its parameters."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        operation = self._operation
        call, ended, data = None, None, b""
        try:
            self._check_site(request.headers)
            body = await self._body(request)
            id, ended = self._id(request, body)
            call = Call(self._around.service, id, peer_of_http(request), len(body), request.path_params)
            with call.body(operation.rpc):
                async with call.work(operation.rpc):
                    answer = await operation.handle(call, *await self._arguments(request, body))
                    del body
                    if isinstance(answer, Rows):
                        await answer.begin()
                    else:
                        data = await call.convert(to_json, answer)
            if isinstance(answer, Rows):
                await self._send_rows(call, answer, send)
                return
            call.reply(len(data))
            await Response(data, operation.status, media_type=JSON)(scope, receive, send)
        finally:
            if ended is not None:
                ended()
            if call is not None:
                call.leave()

    def _check_site(self, headers: Headers) -> None:
        """A page of another site can make a browser send what its owner did not mean."""
        site = headers.get("sec-fetch-site", "")
        if self._operation.changes and site in OTHER_SITES and headers.get("origin") not in self._around.origins:
            message = "pages of other sites may not change anything here; --http-cors-origin lets those of an origin"
            raise HttpError(HTTPStatus.FORBIDDEN, message)

    async def _body(self, request: Request) -> bytes:
        headers = request.headers
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return b""
        return await self._around.bodies.read(request)

    def _id(self, request: Request, body: bytes) -> tuple[CallId, Callable[[], None] | None]:
        given = request.headers.get(ID_HEADER)
        if given:
            return CallId(given, True), None
        if not self._operation.remembers:
            return CallId("", False), None
        caller = caller_now()
        key = key_of(
            "" if caller is None else caller.name,
            "" if request.client is None else request.client.host,
            request.method,
            request.scope["path"],
            request.scope["query_string"],
            body,
        )
        return self._around.deliveries.begin(key, request.scope["state"])

    async def _arguments(self, request: Request, body: bytes) -> list[Any]:
        operation, arguments = self._operation, []
        if operation.body is not None:
            arguments.append(await self._read(request.headers, body))
        if operation.query is not None:
            arguments.append(_query(operation, request.query_params))
        return arguments

    async def _read(self, headers: Headers, body: bytes) -> Any:
        operation = self._operation
        if not body:
            if operation.body_optional:
                return None
            raise UnprocessableError.missing("body")
        sent = media_type(headers)
        if sent != JSON and not (sent.startswith("application/") and sent.endswith("+json")):
            # As theirs, and since a form on any page could send such a body.
            message = f"Content-Type is {sent or 'missing'}; send {JSON}"
            raise UnprocessableError(
                [{"type": "model_attributes_type", "loc": ["body"], "msg": message, "input": None}]
            )
        return await self._around.service.heavy.convert(self._parse, body, len(body))

    def _parse(self, body: bytes) -> Any:
        check_values(body, "body", ratio=OBJECTS_RATIO)
        try:
            value = json.loads(body)
        except json.JSONDecodeError as error:
            raise _not_json(error.msg, error.pos) from None
        except UnicodeDecodeError as error:
            raise _not_json("the body is not UTF-8", error.start) from None
        except RecursionError:
            raise _not_json("the body is nested too deeply", 0) from None
        except ValueError:
            raise _not_json("a number has too many digits", 0) from None
        if value is None and self._operation.body_optional:
            return None
        try:
            return self._operation.body_adapter.validate_python(value, from_attributes=True)
        except ValidationError as error:
            raise UnprocessableError.of(error, "body") from None

    async def _send_rows(self, call: Call, rows: Rows, send: Send) -> None:
        """Sends the rows as they are made; one piece is held at a time."""
        headers = [(b"content-type", JSON.encode())]
        began = False
        async with aclosing(rows.parts()) as parts:  # type: ignore[type-var]  # it is a generator
            async for part in parts:
                call.reply(len(part))
                if not began:
                    await send({"type": "http.response.start", "status": self._operation.status, "headers": headers})
                    began = True
                await send({"type": "http.response.body", "body": part, "more_body": True})
                call.sent(len(part))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def routes_of(operations: Sequence[Operation], around: Surroundings) -> list[Route]:
    """A route for each."""
    routes = []
    for operation in operations:
        route = Route(operation.path, Endpoint(operation, around), methods=[operation.method])
        assert route.methods is not None
        route.methods.discard("HEAD")  # some of these change something
        routes.append(route)
    return routes


def deliveries() -> Deliveries:
    """None yet."""
    return Deliveries(SystemClock().monotonic)


def _query(operation: Operation, given: QueryParams) -> Any:
    names = operation.query.model_fields
    values = {
        name: given.getlist(name) if name in operation.query_lists else given[name] for name in names if name in given
    }
    try:
        return operation.query.model_validate(values)
    except ValidationError as error:
        raise UnprocessableError.of(error, "query") from None


def _not_json(why: str, position: int) -> UnprocessableError:
    found = {"type": "json_invalid", "loc": ["body", position], "msg": "JSON decode error", "input": {}}
    return UnprocessableError([{**found, "ctx": {"error": why}}])
