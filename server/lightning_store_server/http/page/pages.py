"""The page: its paths, and what each of them shows. What changes something goes through ``actions``."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, urlencode

from pydantic_core import to_jsonable_python
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from lightning_store.backends.records import RolloutRow, SpanRecord
from lightning_store.clock import Clock
from lightning_store.engine.conversion import rollout_with_attempt, span_of
from lightning_store.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    SpansEvictedError,
    StoreError,
    UnauthenticatedError,
)
from lightning_store.masking import masked
from lightning_store.model import Attempt, AttemptedRollout, ResourcesUpdate, Rollout, Span
from lightning_store.queries import RolloutQuery, SpanQuery
from lightning_store.store import LightningStore
from lightning_store.wire.methods import Role
from lightning_store_server.access import Access, note_caller
from lightning_store_server.config import KIB, MIB, ServerConfig
from lightning_store_server.http.answers import HttpError
from lightning_store_server.http.bodies import BodyReader
from lightning_store_server.http.guard import PAGE_PREFIX
from lightning_store_server.http.limits import HttpLimits
from lightning_store_server.http.page.actions import ACTIONS, Action
from lightning_store_server.http.page.board import Board
from lightning_store_server.http.page.causes import cause_of, error_of
from lightning_store_server.http.page.conversation import HINTS, Call, calls_of
from lightning_store_server.http.page.digest import Digest, group_state
from lightning_store_server.http.page.listing import (
    BY_DIGEST,
    BY_PLACE,
    MODES,
    PAGE_ROWS,
    REASONS,
    STATUSES,
    Filters,
    Listing,
)
from lightning_store_server.http.page.rendering import HEADERS, STATIC, Pages, difference, static_file
from lightning_store_server.http.page.sessions import Sessions, Viewer, check_csrf, check_origin
from lightning_store_server.http.page.settings import limits_of
from lightning_store_server.http.page.waterfall import SPANS_MAX, Waterfall, waterfall
from lightning_store_server.interceptors import shown_error
from lightning_store_server.record_store import records_of
from lightning_store_server.rewards import final_reward, reward_of
from lightning_store_server.slices import FairGate
from lightning_store_server.text import short_json

Handler: TypeAlias = Callable[[Request, Viewer], Awaitable[Response]]

FORM_BYTES_MAX: Final = 64 * KIB
SPANS_BYTES_MAX: Final = 16 * MIB
"""Of the documents of the spans that a page is made of; it has those that come first."""
READS_MAX: Final = 4
"""Pages that are made at once; connections that wait for their turn get it in turn."""
MEMBERS_MAX: Final = 16
"""Members of a group that are shown side by side."""
SPANS_FEW: Final = 500
"""More are drawn in a thread: it takes some ten milliseconds, in which other calls get their turn."""
CALLS_MAX: Final = 50
"""Calls of language models that are shown of a rollout, the first ones."""
VERSIONS_MAX: Final = 100
"""Sets of resources on one page."""
WORKERS_ROWS: Final = 200
VALUE_CHARS_MAX: Final = 400
"""Characters of a value that are compared; weights are longer, and no reading."""
USERS_MAX: Final = 20
"""Rollouts that are named as users of a set of resources."""
STATUS_OF: Final[Mapping[type[StoreError], HTTPStatus]] = {
    InvalidArgumentError: HTTPStatus.BAD_REQUEST,
    PermissionDeniedError: HTTPStatus.FORBIDDEN,
}


class Page:
    """The pages of one server.

    Args:
        store: What is served.
        config: Settings of the server, which are shown.
        access: Knows who may look; None for everybody.
        clock: Tells when sessions end.
        version: Of the program.
    """

    def __init__(
        self, store: LightningStore, config: ServerConfig, access: Access | None, clock: Clock, version: str
    ) -> None:
        self._store = store
        self._records = records_of(store)
        self._config = config
        self._access = access
        self._clock = clock
        self._sessions = Sessions(access, clock)
        self._digest = Digest(store, clock)
        self._listing = Listing(store, clock)
        self._pages = Pages(version)
        self._gate = FairGate(READS_MAX)
        self._forms = BodyReader(FORM_BYTES_MAX, HttpLimits())

    def routes(self) -> list[BaseRoute]:
        """All paths of the page."""
        return [
            self._route("/", self._overview),
            self._route(f"{PAGE_PREFIX}/live", self._live),
            self._route(f"{PAGE_PREFIX}/rollouts", self._rollouts),
            self._route(f"{PAGE_PREFIX}/rollouts/{{rollout_id}}", self._rollout),
            self._route(f"{PAGE_PREFIX}/rollouts/{{rollout_id}}/json", self._rollout_json),
            self._route(f"{PAGE_PREFIX}/groups/{{group_id:path}}", self._group),
            self._route(f"{PAGE_PREFIX}/workers", self._workers),
            self._route(f"{PAGE_PREFIX}/resources", self._resources),
            self._route(f"{PAGE_PREFIX}/resources/{{resources_id}}", self._one_resources),
            self._route(f"{PAGE_PREFIX}/settings", self._settings),
            self._route(f"{PAGE_PREFIX}/confirm", self._confirm),
            self._route(f"{PAGE_PREFIX}/change", self._change, "POST"),
            self._open_route(f"{PAGE_PREFIX}/login", self._login_form),
            self._open_route(f"{PAGE_PREFIX}/login", self._login, "POST"),
            self._open_route(f"{PAGE_PREFIX}/logout", self._logout, "POST"),
            self._open_route(f"{PAGE_PREFIX}/static/{{name}}", self._static),
            self._route(f"{PAGE_PREFIX}/{{rest:path}}", self._nothing),
        ]

    # --- What surrounds each page ------------------------------------------------------------------------------------

    def _route(self, path: str, handler: Handler, method: str = "GET") -> Route:
        """A page for those who have logged in."""

        async def answer(request: Request) -> Response:
            try:
                viewer = self._sessions.viewer(request)
            except UnauthenticatedError:
                where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                after = urlencode({"after": where}) if method == "GET" and path != f"{PAGE_PREFIX}/live" else ""
                return RedirectResponse(f"{PAGE_PREFIX}/login?{after}", HTTPStatus.SEE_OTHER, HEADERS)
            note_caller(viewer.caller)
            try:
                if viewer.caller is not None:
                    viewer.caller.require(Role.READER, f"{method} {path}")
                peer = "" if request.client is None else request.client.host
                async with self._gate.place(lambda: peer):
                    return await handler(request, viewer)
            except (StoreError, HttpError) as error:
                return self._failed(error, viewer, path)

        answer.route_path = path  # type: ignore[attr-defined]  # for metrics, which must not have ids
        return Route(path, answer, methods=[method])

    def _open_route(self, path: str, handler: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        """A page for everybody."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except (StoreError, HttpError) as error:
                return self._failed(error, None, path)

        answer.route_path = path  # type: ignore[attr-defined]
        return Route(path, answer, methods=[method])

    def _failed(self, error: StoreError | HttpError, viewer: Viewer | None, path: str) -> Response:
        status = error.status if isinstance(error, HttpError) else HTTPStatus.SERVICE_UNAVAILABLE
        for kind, found in STATUS_OF.items():
            if isinstance(error, kind):
                status = found
        told = error if isinstance(error, HttpError) else shown_error(f"page {path}", error)
        return self._show("error.html", viewer, status, message=str(told), title=status.phrase, here="")

    def _show(self, name: str, viewer: Viewer | None, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
        return self._pages.render(name, status, viewer=viewer, Role=Role, login_needed=self._sessions.needed, **values)

    async def _nothing(self, request: Request, viewer: Viewer) -> Response:
        raise HttpError(HTTPStatus.NOT_FOUND, f"there is no page {request.url.path[:200]}")

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HttpError(HTTPStatus.NOT_FOUND, "there is no such file")
        headers = {**HEADERS, "Cache-Control": "max-age=300"}
        return Response(static_file(name), headers=headers, media_type=STATIC[name])

    # --- Logging in --------------------------------------------------------------------------------------------------

    async def _login_form(self, request: Request) -> Response:
        if not self._sessions.needed:
            return RedirectResponse("/", HTTPStatus.SEE_OTHER, HEADERS)
        return self._show("login.html", None, after=_own_path(request.query_params.get("after")), problem="", here="")

    async def _login(self, request: Request) -> Response:
        form = await self._form(request)
        after = _own_path(form.get("after"))
        response = RedirectResponse(after, HTTPStatus.SEE_OTHER, HEADERS)
        if self._sessions.needed:
            try:
                self._sessions.begin(form.get("key", ""), request, response)
            except UnauthenticatedError as error:
                return self._show("login.html", None, HTTPStatus.UNAUTHORIZED, after=after, problem=str(error), here="")
        return response

    async def _logout(self, request: Request) -> Response:
        await self._form(request)
        response = RedirectResponse(f"{PAGE_PREFIX}/login", HTTPStatus.SEE_OTHER, HEADERS)
        self._sessions.end(request, response)
        return response

    async def _form(self, request: Request) -> dict[str, str]:
        """The members of a form, of which the last one counts under each name. HttpError if it is another site's."""
        return {name: values[-1] for name, values in (await self._many(request)).items()}

    async def _many(self, request: Request) -> dict[str, list[str]]:
        check_origin(request)
        body = await self._forms.read(request)
        try:
            return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=2 * PAGE_ROWS)
        except ValueError:
            raise HttpError(HTTPStatus.BAD_REQUEST, "the form cannot be read") from None

    # --- Overview ----------------------------------------------------------------------------------------------------

    async def _overview(self, request: Request, viewer: Viewer) -> Response:
        return self._show("overview.html", viewer, here="overview", board=Board(await self._digest.look()))

    async def _live(self, request: Request, viewer: Viewer) -> Response:
        """The part of the overview that changes."""
        return self._show("overview_live.html", viewer, board=Board(await self._digest.look()))

    # --- Rollouts ----------------------------------------------------------------------------------------------------

    async def _rollouts(self, request: Request, viewer: Viewer) -> Response:
        given = request.query_params
        filters = Filters.read(given, {name: given.getlist(name) for name in ("status", "mode", "reason")})
        state = await self._digest.look()
        page = await self._listing.page(filters, given.get("begin", ""), state.ended)
        rewards = {one.rollout.rollout_id: one.reward for one in state.ended if one.reward is not None}
        rest = urlencode([(name, value) for name, value in given.multi_items() if name != "begin" and value])
        return self._show(
            "rollouts.html",
            viewer,
            here="rollouts",
            page=page,
            rows=[rollout_with_attempt(row) for row in page.rows],
            rewards=rewards,
            now=state.now,
            given=given,
            chosen={name: set(given.getlist(name)) for name in ("status", "mode", "reason")},
            rest=rest,
            total=sum(state.rollouts.values()),
            orders={**BY_PLACE, **BY_DIGEST},
            by_digest=BY_DIGEST,
            statuses=STATUSES,
            modes=MODES,
            reasons=REASONS,
            actions=_allowed(viewer),
        )

    async def _found(self, rollout_id: str) -> RolloutRow:
        row = await self._records.rollout(rollout_id)
        if row is None:
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is no rollout {rollout_id[:200]}; it may have been deleted")
        return row

    async def _rollout(self, request: Request, viewer: Viewer) -> Response:
        given = request.query_params
        row = await self._found(request.path_params["rollout_id"])
        rollout = rollout_with_attempt(row)
        attempts = list(await self._store.query_attempts(rollout.rollout_id))
        latest = attempts[-1].attempt_id if attempts else None
        attempt_id = given.get("attempt") or latest
        attempt = next((one for one in attempts if one.attempt_id == attempt_id), None)
        records, total, evicted = await self._spans(rollout.rollout_id, attempt_id)
        first, name, errors_only = _whole(given, "first"), given.get("name", ""), bool(given.get("errors"))

        def look() -> tuple[Waterfall, Sequence[SpanRecord]]:
            return waterfall(records, total, first=first, name=name, errors_only=errors_only), _talks(records)

        shown, talks = look() if len(records) <= SPANS_FEW else await asyncio.to_thread(look)
        talks = talks[:CALLS_MAX]
        calls = calls_of(map(span_of, talks))
        span = next((span_of(one) for one in records if one.span_id == given.get("span")), None)
        reward = final_reward([span_of(one) for one in records[-5:]])
        if reward is None and total:
            reward = await reward_of(self._store, rollout)
        cause = "" if rollout.status == "succeeded" else await cause_of(self._store, rollout)
        return self._show(
            "rollout.html",
            viewer,
            here="rollouts",
            rollout=rollout,
            attempts=attempts,
            attempt=attempt,
            lives=_lives(rollout, attempts),
            falls=shown,
            evicted=evicted,
            calls=calls,
            calls_more=len(talks) == CALLS_MAX,
            tokens_in=sum(one.tokens_in or 0 for one in calls),
            tokens_out=sum(one.tokens_out or 0 for one in calls),
            span=span,
            span_error="" if span is None else error_of(span),
            span_shown={} if span is None else _jsonable(span),
            reward=reward,
            cause=cause,
            used=await self._used(attempt, rollout, viewer),
            spans_max=SPANS_MAX,
            given=given,
            now=self._digest.state.now or self._clock.now(),
            actions=_allowed(viewer),
        )

    async def _spans(self, rollout_id: str, attempt_id: str | None) -> tuple[Sequence[SpanRecord], int, bool]:
        """The first spans of an attempt, how many there are, and whether they were dropped."""
        if attempt_id is None:
            return [], 0, False
        try:
            found = await self._records.query_spans(
                SpanQuery(rollout_id=rollout_id, attempt_id=attempt_id, limit=SPANS_MAX)
            )
        except SpansEvictedError:
            return [], 0, True
        records, size_bytes = list[SpanRecord](), 0
        for one in found.items:
            records.append(one)
            size_bytes += len(one.document)
            if size_bytes > SPANS_BYTES_MAX:
                break
        return records, found.total, False

    async def _used(self, attempt: Attempt | None, rollout: Rollout, viewer: Viewer) -> Mapping[str, Any] | None:
        """The resources of an attempt, and what they changed."""
        resources_id = rollout.resources_id if attempt is None else attempt.resources_id or rollout.resources_id
        found = None if resources_id is None else await self._store.get_resources_by_id(resources_id)
        return None if found is None else await self._compared(found)

    async def _rollout_json(self, request: Request, viewer: Viewer) -> Response:
        """A rollout with its attempts and the first spans of each, as one document."""
        rollout = rollout_with_attempt(await self._found(request.path_params["rollout_id"]))
        attempts = list(await self._store.query_attempts(rollout.rollout_id))
        records, total, _ = await self._spans(rollout.rollout_id, attempts[-1].attempt_id if attempts else None)

        def told() -> str:
            about = {"rollout": _jsonable(rollout), "attempts": [_jsonable(one) for one in attempts]}
            spans = ", ".join(json.dumps(_jsonable(span_of(one))) for one in records[:1000])
            return f'{json.dumps(about)[:-1]}, "spans": [{spans}], "spans_total": {total}}}'

        return Response(await asyncio.to_thread(told), headers=HEADERS, media_type="application/json")

    # --- Groups ------------------------------------------------------------------------------------------------------

    async def _group(self, request: Request, viewer: Viewer) -> Response:
        group_id = request.path_params["group_id"]
        rows = (await self._records.query_rollouts(RolloutQuery(group_id_in=[group_id], limit=1000))).items
        if not rows:
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is no group {group_id[:200]}")
        members = [rollout_with_attempt(row) for row in rows]
        rewards = {one.rollout_id: await self._reward(one) for one in members[:WORKERS_ROWS]}
        talks = {one.rollout_id: await self._talk(one) for one in members[:MEMBERS_MAX]}
        said = Counter((place, one) for talk in talks.values() for place, one in enumerate(talk))
        values = [one for one in rewards.values() if one is not None]
        return self._show(
            "group.html",
            viewer,
            here="rollouts",
            group=group_state(group_id, [row.rollout for row in rows]),
            members=members,
            rewards=rewards,
            values=values,
            talks=talks,
            # What all of those say that get so far is the same; what not all say is a difference.
            common={key for key, count in said.items() if count == sum(len(one) > key[0] for one in talks.values())},
            members_max=MEMBERS_MAX,
            now=self._digest.state.now or self._clock.now(),
            actions=_allowed(viewer),
        )

    async def _reward(self, rollout: Rollout) -> float | None:
        reward = await reward_of(self._store, rollout)
        return reward if reward is not None and math.isfinite(reward) else None

    async def _talk(self, rollout: Rollout) -> Sequence[tuple[str, str]]:
        """What was said in the last call of a language model: who, and what. Where there is none, what was returned by
        the spans, as far as it can be read."""
        attempt = rollout.attempt if isinstance(rollout, AttemptedRollout) else None
        if attempt is None:
            return []
        records, _, _ = await self._spans(rollout.rollout_id, attempt.attempt_id)
        calls: list[Call] = calls_of(map(span_of, _talks(records)[-3:]))
        if calls:
            return [(one.role, one.text) for one in calls[-1].messages]
        spans = map(span_of, records[:8])
        return [(one.name, short_json(one.attributes, 600)) for one in spans if one.attributes]

    # --- Workers, resources, settings --------------------------------------------------------------------------------

    async def _workers(self, request: Request, viewer: Viewer) -> Response:
        given = request.query_params
        state = await self._digest.look()
        first = _whole(given, "first")
        found = await self._store.query_workers(
            worker_id_contains=given.get("id") or None, sort_by="worker_id", limit=WORKERS_ROWS, offset=first
        )
        held = {one.worker.worker_id: one for one in state.at_work}
        return self._show(
            "workers.html", viewer, here="workers", workers=list(found), total=found.total, first=first,
            held=held, given=given, now=state.now,
        )  # fmt: skip

    async def _resources(self, request: Request, viewer: Viewer) -> Response:
        first = _whole(request.query_params, "first")
        found = await self._store.query_resources(
            sort_by="create_time", sort_order="desc", limit=VERSIONS_MAX, offset=first
        )
        state = await self._digest.look()
        users = Counter(
            one.attempt.resources_id or one.rollout.resources_id for one in state.ended if one.attempt is not None
        )
        return self._show(
            "resources.html", viewer, here="resources", sets=list(found), total=found.total, first=first,
            users=users, window=len(state.ended), now=state.now,
        )  # fmt: skip

    async def _one_resources(self, request: Request, viewer: Viewer) -> Response:
        resources_id = request.path_params["resources_id"]
        found = await self._store.get_resources_by_id(resources_id)
        if found is None:
            raise HttpError(HTTPStatus.NOT_FOUND, f"there are no resources {resources_id[:200]}")
        state = await self._digest.look()
        users = [one for one in reversed(state.ended) if resources_id == one.rollout.resources_id]
        return self._show(
            "resource.html",
            viewer,
            here="resources",
            used=await self._compared(found),
            users=users[:USERS_MAX],
            users_count=len(users),
            window=len(state.ended),
            now=state.now,
        )

    async def _compared(self, found: ResourcesUpdate) -> Mapping[str, Any]:
        """Resources without their secrets, beside those of the version before."""
        before = await self._before(found)
        lines = [] if before is None else difference(_told(before), _told(found))
        return {"resources": found, "shown": _shown(found), "before": before, "lines": lines}

    async def _before(self, found: ResourcesUpdate) -> ResourcesUpdate | None:
        """Those of the same run with the next lower policy version."""
        near = await self._store.query_resources(sort_by="create_time", sort_order="desc", limit=VERSIONS_MAX)
        earlier = [
            one
            for one in near
            if one.run == found.run and one.policy_version < found.policy_version and one.policy_version > 0
        ]
        return max(earlier, key=lambda one: one.policy_version, default=None)

    async def _settings(self, request: Request, viewer: Viewer) -> Response:
        state = await self._digest.look()
        return self._show(
            "settings.html",
            viewer,
            here="settings",
            state=state,
            limits=limits_of(self._config),
            tokens=[] if self._access is None else self._access.tokens(),
            capabilities=[name for name, value in self._store.capabilities.items() if value],
            strict=self._store.strict,
            now=self._clock.now(),
        )

    # --- Changes -----------------------------------------------------------------------------------------------------

    async def _confirm(self, request: Request, viewer: Viewer) -> Response:
        given = request.query_params
        action = _action(given.get("do", ""), viewer)
        ids = list(dict.fromkeys(given.getlist("id")))[:PAGE_ROWS]
        if not ids:
            raise HttpError(HTTPStatus.BAD_REQUEST, "no rollout is chosen; go back and choose some")
        rows = (await self._records.query_rollouts(RolloutQuery(rollout_id_in=ids))).items
        return self._show(
            "confirm.html",
            viewer,
            here="rollouts",
            action=action,
            rows=[rollout_with_attempt(row) for row in rows],
            back=_own_path(given.get("back")),
        )

    async def _change(self, request: Request, viewer: Viewer) -> Response:
        form = await self._many(request)
        check_csrf(viewer, form.get("csrf", [""])[-1])
        action = _action(form.get("do", [""])[-1], viewer)
        await action.run(self._store, list(dict.fromkeys(form.get("id", []))))
        back = _own_path(form.get("back", [""])[-1])
        return RedirectResponse(back, HTTPStatus.SEE_OTHER, HEADERS)


def _talks(records: Sequence[SpanRecord]) -> Sequence[SpanRecord]:
    """Those that may be calls of language models."""
    return [one for one in records if any(hint in one.document for hint in HINTS)]


def _own_path(path: str | None) -> str:
    """A path of the page, to go on to; the overview for any other."""
    return path if path is not None and path.startswith(f"{PAGE_PREFIX}/") and "\\" not in path else "/"


def _whole(given: Mapping[str, str], name: str) -> int:
    text = given.get(name) or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidArgumentError(f"{name} is {text!r}; give a whole number", field=name)
    return int(text)


def _allowed(viewer: Viewer) -> list[Action]:
    return [one for one in ACTIONS.values() if viewer.may(one.role)]


def _action(name: str, viewer: Viewer) -> Action:
    """PermissionDeniedError unless the viewer may do this."""
    action = ACTIONS.get(name)
    if action is None:
        raise InvalidArgumentError(f"do is {name!r}; give one of {', '.join(ACTIONS)}", field="do")
    if viewer.caller is not None:
        viewer.caller.require(action.role, f"to {action.name} rollouts")
    return action


def _jsonable(value: Rollout | Attempt | Span) -> Any:
    """As JSON has it: NaN and the infinities as text."""
    plain = to_jsonable_python(value.model_dump(), bytes_mode="base64", fallback=str)
    return json.loads(json.dumps(plain), parse_constant=str)


def _lives(rollout: Rollout, attempts: Sequence[Attempt]) -> list[tuple[Attempt, float, float]]:
    """Each attempt with its beginning and length in hundredths of the time since the rollout was made."""
    ends = [one.end_time or one.last_heartbeat_time or one.start_time for one in attempts]
    last = max([rollout.end_time or 0.0, *ends, rollout.start_time])
    span = max(1e-9, last - rollout.start_time)
    lives = []
    for one, end in zip(attempts, ends, strict=True):
        x = min(99.0, max(0.0, 100 * (one.start_time - rollout.start_time) / span))
        lives.append((one, round(x, 2), round(min(100 - x, max(0.6, 100 * (end - one.start_time) / span)), 2)))
    return lives


def _shown(found: ResourcesUpdate) -> Mapping[str, Any]:
    """Without secrets: whoever needs one has a client, and a page is looked at over shoulders."""
    shown: Mapping[str, Any] = masked({name: one.model_dump() for name, one in found.resources.items()})
    return shown


def _told(found: ResourcesUpdate) -> str:
    """As lines to compare: a text as its own lines, everything else as JSON."""
    lines = []
    for name, members in sorted(_shown(found).items()):
        for field, value in members.items():
            if isinstance(value, str) and "\n" in value:
                lines += [f"{name}.{field}:", *(f"  {line}" for line in value.splitlines())]
            else:
                lines.append(f"{name}.{field}: {short_json(value, VALUE_CHARS_MAX)}")
    return "\n".join(lines[:2000])
