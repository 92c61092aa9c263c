"""The operator's page: what it shows, to whom, and that nothing that is stored gets out of its text."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from urllib.parse import urlencode, urlsplit

import pytest
import pytest_asyncio

from lightning_store import LLM, EnqueueRolloutRequest, InMemoryLightningStore, PromptTemplate, RolloutConfig, Span
from lightning_store.queries import SpanQuery
from lightning_store.sqlite_store import SqliteEngineStore
from lightning_store.testing import FakeClock
from lightning_store.wire.methods import Role
from lightning_store_server import ServerConfig
from lightning_store_server.access import Access
from lightning_store_server.http.app import Lifecycle, make_app
from lightning_store_server.http.page import listing
from lightning_store_server.http.page.board import Board
from lightning_store_server.http.page.conversation import call_of
from lightning_store_server.http.page.digest import Digest
from lightning_store_server.http.page.listing import Filters, Listing
from lightning_store_server.http.page.pages import Page
from lightning_store_server.http.page.waterfall import ROWS, waterfall
from lightning_store_server.record_store import records_of
from lightning_store_server.tokens import add_token
from tests.server.conftest import HookedStore

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}\u202e"
MINUS = "\u2212"
PATHS = ("/", "/ui/live", "/ui/rollouts", "/ui/workers", "/ui/resources", "/ui/settings")


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.text = status, headers, body.decode()

    @property
    def words(self):
        """The text of a page, without its tags."""
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", self.text)).split())


class Tags(HTMLParser):
    """The names of all elements of a page, and those with scripts or styles of their own."""

    def __init__(self, text):
        super().__init__()
        self.names, self.inline, self.links = set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        given = dict(attrs)
        self.links += [given[name] for name in ("href", "src", "action", "data-copy", "data-live") if name in given]
        if (tag == "script" and "src" not in given) or any(name == "style" or name.startswith("on") for name in given):
            self.inline.append((tag, given))


class Browser:
    """Speaks to the application as a browser does: it keeps cookies, and says where forms come from."""

    def __init__(self, store, *, access=None, clock=None, observers=()):
        page = Page(store, ServerConfig(), access, clock or FakeClock(), "1.2.3")
        self._app = make_app(page.routes(), Lifecycle(), access=access, observers=observers)
        self.cookies = SimpleCookie()

    async def get(self, path):
        return await self._ask("GET", path)

    async def post(self, path, form, origin="http://store.test"):
        return await self._ask("POST", path, urlencode(form, doseq=True).encode(), origin)

    async def log_in(self, token, after="/"):
        return await self.post("/ui/login", {"key": token, "after": after})

    async def _ask(self, method, path, body=b"", origin=None):
        parts = urlsplit(path)
        headers = {"host": "store.test", "content-length": str(len(body))}
        if origin is not None:
            headers["origin"] = origin
        if self.cookies:
            headers["cookie"] = "; ".join(f"{name}={one.value}" for name, one in self.cookies.items())
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": html.unescape(parts.path).replace("%2F", "/").replace("%20", " "),
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("store.test", 80),
            "root_path": "",
        }
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent = []

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await self._app(scope, receive, send)
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        if "set-cookie" in found:
            self.cookies.load(found["set-cookie"])
        return Reply(sent[0]["status"], found, b"".join(one.get("body", b"") for one in sent))


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path):
    if request.param == "memory":
        yield InMemoryLightningStore(clock=FakeClock())
        return
    opened = SqliteEngineStore(str(tmp_path / "store.db"), clock=FakeClock())
    yield opened
    opened.close()


def csrf_of(reply):
    [found] = re.findall(r'name="csrf" value="([^"]+)"', reply.text)
    return found


def a_span(claimed, number, name="work", parent=None, **more):
    fields = {
        "rollout_id": claimed.rollout_id,
        "attempt_id": claimed.attempt.attempt_id,
        "sequence_id": number,
        "trace_id": "1" * 32,
        "span_id": f"{number:016x}",
        "parent_id": None if parent is None else f"{parent:016x}",
        "name": name,
        "start_time": 100.0 + number,
        "end_time": 101.0 + number,
    }
    return Span(**(fields | more))


async def train(store, group, rewards, worker="runner"):
    """Run a group to its end, with a reward for each member; None is a failure."""
    await store.enqueue_many_rollouts(
        [
            EnqueueRolloutRequest(input={"n": n}, mode="train", group_id=group, group_size=len(rewards))
            for n in range(len(rewards))
        ]
    )
    for reward in rewards:
        claimed = await store.dequeue_rollout(worker)
        key = claimed.rollout_id, claimed.attempt.attempt_id
        if reward is None:
            await store.update_attempt(*key, status="failed", metadata={"error": "no such tool\nTraceback"})
        else:
            await store.add_span(a_span(claimed, 1, attributes={"reward": reward}))
            await store.update_attempt(*key, status="succeeded")


@pytest.mark.asyncio
async def test_whatever_is_stored_stays_text(store):
    secret = "sk-very-secret"
    llm = LLM(endpoint=f"http://user:{secret}@host/v1", model=HOSTILE, api_key=secret)
    await store.add_resources({HOSTILE: llm, "prompt": PromptTemplate(template="one\ntwo", engine="f-string")})
    changed = await store.add_resources({"prompt": PromptTemplate(template="one\n2", engine="f-string")})
    group = f"a/b {HOSTILE}"
    await store.enqueue_many_rollouts(
        [EnqueueRolloutRequest(input={"text": HOSTILE}, metadata={HOSTILE: HOSTILE}, group_id=group) for _ in range(2)]
    )
    claimed = await store.dequeue_rollout(HOSTILE)
    await store.update_worker(HOSTILE, {HOSTILE: HOSTILE, "process_cpu_percent": 12.0, "process_rss_bytes": 3 * 2**20})
    talk = {"gen_ai.prompt.0.content": HOSTILE, "gen_ai.completion.0.content": "fine", "nan": float("nan")}
    error = {"status_code": "ERROR", "description": HOSTILE}
    await store.add_many_spans(
        [a_span(claimed, 1, HOSTILE, attributes=talk), a_span(claimed, 2, HOSTILE, parent=1, status=error)]
    )
    await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="failed", metadata={"e": HOSTILE})
    browser = Browser(store)
    rollout = f"/ui/rollouts/{claimed.rollout_id}"
    paths = [
        *PATHS,
        rollout,
        f"{rollout}?span={1:016x}&name=script&first=0",
        f"/ui/groups/{group}",
        f"/ui/resources/{changed.resources_id}",
        f"/ui/confirm?do=delete&id={claimed.rollout_id}&back=/ui/rollouts",
        "/ui/rollouts?" + urlencode({"text": HOSTILE, "worker": HOSTILE, "order": "newest"}),
    ]
    for path in paths:
        reply = await browser.get(path)
        assert reply.status == 200, (path, reply.words)
        tags = Tags(reply.text)
        assert tags.names.isdisjoint({"img", "style", "iframe", "object"}), path
        assert tags.inline == [], path
        assert all(link[0] in "/#" for link in tags.links), path
        assert secret not in reply.text
        assert "script-src 'self'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
    told = (await browser.get(rollout)).words
    assert "<script>alert(1)</script>" in told
    assert "fine" in told
    resources = (await browser.get(f"/ui/resources/{changed.resources_id}")).words
    assert f"{MINUS} two" in resources
    assert "+ 2" in resources
    assert "12% 3MiB" in (await browser.get("/ui/workers")).words
    document = json.loads((await browser.get(f"{rollout}/json")).text)
    assert document["rollout"]["input"] == {"text": HOSTILE}
    assert document["spans"][0]["attributes"]["nan"] == "NaN"


@pytest.mark.asyncio
async def test_numbers_and_texts_that_nothing_can_show_do_no_harm():
    store = InMemoryLightningStore()
    for number in (10**400, float("nan"), -float("inf")):
        await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1, group_id="odd")])
        claimed = await store.dequeue_rollout("w")
        odd = {"gen_ai.completion.0.content": "\ud800", "gen_ai.usage.output_tokens": number, "reward": number}
        await store.add_span(a_span(claimed, 1, "\ud800", attributes=odd))
        await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    await store.update_worker("w", {"process_cpu_percent": 10**400, "process_rss_bytes": -1, "memory_percent": "x"})
    browser = Browser(store)
    paths = (*PATHS, "/ui/groups/odd", f"/ui/rollouts/{claimed.rollout_id}", "/ui/rollouts?order=best")
    for path in (*paths, f"/ui/rollouts/{claimed.rollout_id}/json"):
        reply = await browser.get(path)
        assert reply.status == 200, path
        assert "nan" not in re.findall(r'(?:d|x|y|points)="[^"]*(nan|inf)', reply.text)


@pytest.mark.asyncio
async def test_what_is_not_there_or_not_legal_is_told():
    browser = Browser(InMemoryLightningStore())
    for path, status, told in [
        ("/ui/nothing", 404, "there is no page"),
        ("/ui/static/secrets", 404, "no such file"),
        ("/ui/rollouts/none", 404, "there is no rollout none"),
        ("/ui/groups/none", 404, "there is no group none"),
        ("/ui/resources/none", 404, "there are no resources none"),
        ("/ui/rollouts?status=done", 400, "'done'"),
        ("/ui/rollouts?order=best&reward_min=x", 400, "give a number"),
        ("/ui/rollouts?policy_min=1.5", 400, "give a whole number"),
        ("/ui/rollouts?metadata=run", 400, "give name=value"),
        ("/ui/rollouts?begin=-1", 400, "give a number"),
        ("/ui/confirm?do=burn&id=a", 400, "cancel, requeue, delete"),
        ("/ui/confirm?do=cancel", 400, "no rollout is chosen"),
    ]:
        reply = await browser.get(path)
        assert (reply.status, told in reply.words) == (status, True), (path, reply.words)
    for name, kind in [("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")]:
        assert (await browser.get(f"/ui/static/{name}")).headers["content-type"].startswith(kind)


@pytest.mark.asyncio
async def test_a_browser_logs_in_and_may_do_what_its_role_says(tmp_path):
    path = str(tmp_path / "tokens.json")
    clock = FakeClock()
    now = datetime.fromtimestamp(clock.now(), UTC)
    tokens = {role: add_token(path, role.value, role, now) for role in Role}
    store = InMemoryLightningStore(clock=clock)
    ids = [one.rollout_id for one in await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * 2)]

    def open_browser():
        return Browser(store, access=Access(path, clock), clock=clock)

    browser = open_browser()
    for page in PATHS:
        reply = await browser.get(page)
        assert (reply.status, reply.headers["location"].split("?")[0]) == (303, "/ui/login")
    assert (await browser.get("/ui/login?after=/ui/workers")).status == 200
    assert (await browser.log_in("lst_wrong")).status == 401
    assert (await browser.post("/ui/login", {"key": tokens[Role.ADMIN]}, origin="http://evil.test")).status == 403
    assert not browser.cookies
    assert (await browser.log_in(tokens[Role.READER], "//evil.test")).headers["location"] == "/"
    assert (await browser.log_in(tokens[Role.READER], "/ui/workers")).headers["location"] == "/ui/workers"
    cookie = browser.cookies["lightning_store_session"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
    assert tokens[Role.READER] not in cookie.value
    listed = (await browser.get("/ui/rollouts")).text
    assert "Cancel…" not in listed
    assert "Log out" in listed
    assert [one.name for one in Access(path, clock).tokens()] == [role.value for role in Role]
    settings = await browser.get("/ui/settings")
    assert "algorithm" in settings.words
    assert not any(token in settings.text for token in tokens.values())
    assert (await browser.get(f"/ui/confirm?do=cancel&id={ids[0]}")).status == 403

    assert (await browser.log_in(tokens[Role.ALGORITHM])).status == 303
    form = await browser.get(f"/ui/confirm?do=cancel&id={ids[0]}&back=/ui/rollouts?a=b")
    csrf = csrf_of(form)
    change = {"do": "cancel", "id": [ids[0]], "csrf": csrf, "back": "/ui/rollouts?a=b"}
    for wrong in ({**change, "csrf": ""}, {**change, "do": "delete"}):
        assert (await browser.post("/ui/change", wrong)).status == 403
    assert (await browser.post("/ui/change", change, origin="http://evil.test")).status == 403
    assert (await browser.post("/ui/change", change, origin=None)).status == 403
    other = open_browser()
    assert (await other.post("/ui/change", change)).headers["location"].startswith("/ui/login")
    assert [one.status for one in await store.query_rollouts()] == ["queuing", "queuing"]
    assert (await browser.post("/ui/change", change)).headers["location"] == "/ui/rollouts?a=b"
    assert (await browser.post("/ui/change", {**change, "do": "requeue"})).status == 303
    assert [one.status for one in await store.query_rollouts()] == ["requeuing", "queuing"]

    clock.advance(13 * 3600)
    assert (await browser.get("/")).status == 303
    await browser.log_in(tokens[Role.ADMIN])
    csrf = csrf_of(await browser.get(f"/ui/confirm?do=delete&id={ids[0]}"))
    await browser.post("/ui/change", {"do": "delete", "id": ids, "csrf": csrf})
    assert len(await store.query_rollouts()) == 0
    assert (await browser.post("/ui/logout", {})).headers["location"] == "/ui/login"
    assert (await browser.get("/")).status == 303


@pytest.mark.asyncio
async def test_pages_of_rollouts_hold_while_others_go(store):
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input={"n": n}) for n in range(400)])
    ids = [one.rollout_id for one in made]
    await store.delete_rollouts(ids[20:330])
    listing = Listing(store, FakeClock())

    async def walk(**given):
        filters, found, begin = Filters.read(given, {}), [], ""
        for _ in range(50):
            page = await listing.page(filters, begin, [])
            found += [row.rollout.rollout_id for row in page.rows]
            assert len(page.rows) <= 50
            if page.next is None:
                return found
            begin = page.next
        raise AssertionError("it does not end")

    left = ids[:20] + ids[330:]
    assert await walk(order="oldest") == left
    assert await walk() == left[::-1]
    assert await walk(text='"n":399') + await walk(text='"n": 399') == [ids[399]]
    assert await walk(id=ids[7]) == [ids[7]]
    await store.delete_rollouts(ids[390:])
    assert await walk() == left[-11::-1]
    [val] = await store.enqueue_many_rollouts(
        [EnqueueRolloutRequest(input=0, mode="val", metadata={"lightning.run": "r", "n": 1})]
    )
    assert len(await walk()) == 81
    assert await walk(metadata="lightning.run=r, n=1") == [val.rollout_id]
    assert await walk(metadata="lightning.run=r, n=2") == await walk(policy_min="1") == []
    page = await listing.page(Filters.read({}, {"mode": ["val"]}), "", [])
    assert (len(page.rows), page.next) == (1, None)


@pytest.mark.asyncio
async def test_a_page_of_rollouts_looks_at_so_many_only(monkeypatch):
    monkeypatch.setattr(listing, "LOOKED_MAX", 100)
    store = InMemoryLightningStore()
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=n, mode="val") for n in range(2000)])
    browser = Browser(store)
    await store.update_rollout(made[0].rollout_id, mode="train")
    reply = await browser.get("/ui/rollouts?mode=train")
    assert "No rollout fits among the" in reply.words
    steps = 0
    while made[0].rollout_id not in reply.text:
        [following] = re.findall(r'rel="next" href="([^"]+)"', reply.text)
        reply, steps = await browser.get(html.unescape(following)), steps + 1
    assert 2 < steps < 21


@pytest.mark.asyncio
async def test_the_overview_tells_what_became_of_groups_and_rewards(store):
    await store.add_resources({"p": PromptTemplate(template="1", engine="f-string")})
    await train(store, "whole", [1.0, 0.0])
    await train(store, "flat", [1.0, 1.0])
    await store.add_resources({"p": PromptTemplate(template="2", engine="f-string")})
    await train(store, "partial", [0.5, None])
    await train(store, "dropped", [None, None])
    await store.enqueue_many_rollouts(
        [EnqueueRolloutRequest(input=n, mode="val", group_id="open", group_size=3) for n in range(3)]
    )
    wasted, busy = await store.dequeue_rollout("wasted"), await store.dequeue_rollout("busy")
    await store.add_span(a_span(busy, 1, "thinking"))
    await store.cancel_rollouts([wasted.rollout_id])
    whole = [one.rollout_id for one in await store.query_rollouts(group_id_in=["whole"])]
    await store.mark_consumed("trainer", whole)
    board = Board(await Digest(store, FakeClock()).look())
    counts = board.group_counts[-1]
    assert (counts.whole, counts.partial, counts.open, counts.dropped) == (2, 1, 1, 1)
    assert board.oldest_open.group_id == "open"
    assert (board.groups_flat, board.groups_compared) == (1, 2)
    [train_rewards] = board.rewards
    assert (train_rewards.mode, train_rewards.count, train_rewards.mean) == ("train", 5, 0.7)
    assert board.by_version
    assert [(one.reason, one.line, one.count) for one in board.causes] == [
        ("error", "no such tool", 3),
        ("cancelled", "", 1),
    ]
    assert {name: count for name, count, _ in board.slots} == {
        "busy": 1,
        "waiting": 1,
        "wasted": 1,
        "silent or unknown": 0,
    }
    assert [(one.worker.worker_id, one.span_name) for one in board.slowest] == [("busy", "thinking")]
    assert (board.produced, board.consumed, board.backlog) == (5, 2, 3)
    assert board.staleness_count == 2
    assert board.queue_depth == 1
    assert [(mode, depth) for mode, depth, _ in board.queue] == [("train", 0), ("val", 1)]
    words = (await Browser(store).get("/")).words
    assert "Groups without variance: 50%" in words
    assert "Work for nothing: wasted on" in words


@pytest.mark.asyncio
async def test_the_overview_tells_why_groups_may_not_begin(store):
    assert "may begin" not in (await Browser(store).get("/")).words
    await store.set_admission(HOSTILE, paused=True)
    await store.set_admission("run-2", max_open_groups=16)
    words = (await Browser(store).get("/")).words
    assert "is paused , run-2 has 16 open at the most" in words


@pytest.mark.asyncio
async def test_the_overview_goes_on_from_the_look_before():
    clock = FakeClock()
    store = InMemoryLightningStore(clock=clock)
    digest = Digest(store, clock)
    await train(store, "one", [1.0])
    assert len((await digest.look()).ended) == 1
    await train(store, "two", [0.0])
    assert len((await digest.look()).ended) == 1  # it is fresh enough
    clock.advance(2)
    state = await digest.look()
    assert [one.reward for one in state.ended] == [1.0, 0.0]
    await store.requeue_rollouts([state.ended[0].rollout.rollout_id])
    clock.advance(2)
    assert Board(await digest.look()).queue_depth == 1
    ordered = await Browser(store, clock=clock).get("/ui/rollouts?order=worst&reward_max=0.5")
    assert "1 shown" in ordered.words
    assert state.ended[1].rollout.rollout_id in ordered.text


@pytest.mark.asyncio
async def test_somebody_elses_store_has_the_pages_too():
    inner = InMemoryLightningStore()
    await train(inner, "group", [1.0, None])
    await inner.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)])
    await inner.dequeue_rollout("w")
    browser = Browser(HookedStore(inner))
    [failed] = await inner.query_rollouts(status_in=["failed"])
    for path in (*PATHS, f"/ui/rollouts/{failed.rollout_id}", "/ui/groups/group", "/ui/rollouts?order=best"):
        assert (await browser.get(path)).status == 200, path
    assert "no such tool" in (await browser.get("/")).words


@pytest.mark.asyncio
async def test_metrics_get_no_ids():
    told = []
    store = InMemoryLightningStore()
    [made] = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)])
    browser = Browser(store, observers=[told.append])
    await browser.get(f"/ui/rollouts/{made.rollout_id}")
    await browser.get("/ui/static/nothing-of-the-kind")
    assert [one.route for one in told] == ["/ui/rollouts/{rollout_id}", "/ui/static/{name}"]


@pytest.mark.parametrize(
    ("attributes", "events"),
    [
        (
            {
                "gen_ai.prompt.0.role": "user",
                "gen_ai.prompt.0.content": "2+2?",
                "gen_ai.completion.0.content": "4",
                "gen_ai.usage.prompt_tokens": 5,
                "gen_ai.usage.completion_tokens": 1,
            },
            [],
        ),
        (
            {
                "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"2+2?"}]}]',
                "gen_ai.output.messages": [{"role": "assistant", "parts": [{"type": "text", "content": "4"}]}],
                "gen_ai.usage.input_tokens": 5,
                "gen_ai.usage.output_tokens": 1,
            },
            [],
        ),
        (
            {"prompt_token_ids": [1, 2, 3, 4, 5], "response_token_ids": [4]},
            [
                {"name": "gen_ai.user.message", "attributes": {"content": "2+2?"}},
                {"name": "gen_ai.choice", "attributes": {"message": '{"content": "4"}'}},
            ],
        ),
        (
            {
                "llm.input_messages.0.message.role": "user",
                "llm.input_messages.0.message.content": "2+2?",
                "llm.output_messages.0.message.content": "4",
                "llm.token_count.prompt": 5,
                "llm.token_count.completion": 1,
            },
            [],
        ),
    ],
    ids=["numbered", "messages", "events", "openinference"],
)
def test_calls_of_language_models_read_as_conversations(attributes, events):
    span = Span(
        rollout_id="r", attempt_id="a", sequence_id=1, trace_id="1" * 32, span_id="2" * 16, name="chat",
        attributes=attributes, events=events,
    )  # fmt: skip
    call = call_of(span)
    assert [(one.role, one.text, one.is_answer) for one in call.messages] == [
        ("user", "2+2?", False),
        ("assistant", "4", True),
    ]
    assert (call.tokens_in, call.tokens_out) == (5, 1)
    assert call_of(span.model_copy(update={"attributes": {"reward": 1.0}, "events": []})) is None


@pytest.mark.asyncio
async def test_ten_thousand_spans_are_shown_in_parts():
    store = InMemoryLightningStore()
    claimed = await store.start_rollout(1)
    error = {"status_code": "ERROR", "description": "broken"}
    spans = [a_span(claimed, 1, "root", start_time=0.0, end_time=20_000.0)]
    spans += [a_span(claimed, n, f"step-{n}", parent=1) for n in range(2, 10_000)]
    spans.append(a_span(claimed, 10_000, "last", parent=9_999, status=error, end_time=20_001.0))
    await store.add_many_spans(spans)
    records = (await records_of(store).query_spans(SpanQuery(rollout_id=claimed.rollout_id))).items
    whole = waterfall(records, 10_000)
    assert (len(whole.rows), whole.matching, whole.errors, whole.next) == (ROWS, 10_000, 1, ROWS)
    assert [(row.depth, row.on_path) for row in whole.rows[:2]] == [(0, True), (1, False)]
    [failed] = waterfall(records, 10_000, errors_only=True).rows
    assert (failed.record.name, failed.depth, failed.is_error, failed.on_path) == ("last", 2, True, True)
    assert 0 <= failed.x <= 1000 - failed.width
    end = waterfall(records, 10_000, first=9_900)
    assert (len(end.rows), end.next, end.previous) == (100, None, 9_700)
    assert waterfall(records, 10_000, first=10**6, name="STEP-77").rows == []
    page = await Browser(store).get(f"/ui/rollouts/{claimed.rollout_id}?name=step-9999&span={9999:016x}")
    assert "step-9999" in page.words
    assert "10,000 spans" in page.words


@pytest.mark.asyncio
async def test_spans_that_were_dropped_are_told():
    store = InMemoryLightningStore(eviction_memory_threshold=2000, memory_limit=10**6)
    claimed = await store.start_rollout({"a": 1}, config=RolloutConfig(max_attempts=2))
    await store.add_many_spans([a_span(claimed, n, attributes={"text": "x" * 400}) for n in range(1, 4)])
    await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="failed")
    again = await store.start_rollout(2)
    await store.add_many_spans([a_span(again, n, attributes={"text": "x" * 400}) for n in range(1, 4)])
    page = await Browser(store).get(f"/ui/rollouts/{claimed.rollout_id}")
    assert "dropped to free memory" in page.words
    assert "/ui/rollouts" in (await Browser(store).get("/")).text
