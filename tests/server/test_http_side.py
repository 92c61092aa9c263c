"""The HTTP side beside OTLP: probes, errors, origins, and senders that mean no good."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from google.rpc.status_pb2 import Status
from starlette.responses import Response
from starlette.routing import Route

from lightning_store import InMemoryLightningStore, InvalidArgumentError
from lightning_store.testing import SAFETY_SECONDS
from lightning_store.testing.contract.base import until
from lightning_store.wire.methods import Role
from lightning_store_server import LightningStoreServer, ServerConfig
from lightning_store_server.admission import Admission
from lightning_store_server.http.app import Stage
from lightning_store_server.http.limits import HttpLimits
from lightning_store_server.http.side import HttpSide
from lightning_store_server.otlp.ingest import TraceIngest
from lightning_store_server.slices import HeavyThread
from lightning_store_server.tokens import add_token


def base_of(served):
    return served.server.otlp_traces_endpoint().removesuffix("/v1/traces")


def fetch(url, method="GET", **headers):
    """Status, headers and body."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=names, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SAFETY_SECONDS) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@asynccontextmanager
async def listening(**limits):
    """The HTTP side alone, and its port."""
    config = ServerConfig()
    side = HttpSide(
        config, TraceIngest(InMemoryLightningStore(), HeavyThread()), Admission(config), limits=HttpLimits(**limits)
    )
    port = side.bind([(socket.AF_INET, "127.0.0.1")], 0)
    await side.start()
    try:
        yield side, port
    finally:
        assert await side.stop(SAFETY_SECONDS)


async def say(port, *parts, ends=False):
    """Send all that, and return what comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
        if ends:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), SAFETY_SECONDS)
    finally:
        writer.close()


def statuses(answers):
    return [status.decode() for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


def get(path, *lines):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


# --- Probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/startupz"])
def test_a_server_that_serves_answers_its_probes(serve, path):
    status, headers, body = fetch(base_of(serve(http_port=0)) + path)
    assert (status, json.loads(body)) == (200, {"status": "serving"})
    assert headers["Content-Type"] == "application/json"


@pytest.mark.asyncio
async def test_probes_tell_how_far_the_server_is():
    async def told(port):
        answers = [await say(port, get(path, "Connection: close")) for path in ("/healthz", "/startupz", "/readyz")]
        return [*map(statuses, answers)], answers[0].rpartition(b"\r\n")[2]

    async with listening() as (side, port):
        assert await told(port) == ([["200"], ["503"], ["503"]], b'{"status":"starting"}')
        side.note_started()
        assert await told(port) == ([["200"], ["200"], ["200"]], b'{"status":"serving"}')
        side.drain()
        assert await told(port) == ([["200"], ["200"], ["503"]], b'{"status":"draining"}')
        refused = await say(port, get("/v1/traces"))
        assert statuses(refused) == ["503"]
        assert b"connection: close" in refused.lower()


@pytest.mark.asyncio
@pytest.mark.parametrize("begun", [b"", b"GET /re"])
async def test_who_has_just_connected_is_told_of_the_drain(begun):
    async with listening() as (side, port):
        side.note_started()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(begun)
            await until(lambda: side.listener.connections)
            side.drain()
            writer.write(get("/readyz").removeprefix(begun))
            answer = await asyncio.wait_for(reader.read(), SAFETY_SECONDS)
        finally:
            writer.close()
        assert statuses(answer) == ["503"]
        assert b"connection: close" in answer.lower()


def test_readiness_is_down_while_calls_still_finish(serve, hooked):
    entered, opened = threading.Event(), asyncio.Event()
    loops = []
    inner = InMemoryLightningStore()

    async def update_worker(*args, **kwargs):
        loops.append(asyncio.get_running_loop())
        entered.set()
        await opened.wait()
        return await inner.update_worker(*args, **kwargs)

    from lightning_store.v1 import worker_pb2

    served = serve(hooked(inner, update_worker=update_worker), http_port=0, grace_seconds=SAFETY_SECONDS)
    url = base_of(served) + "/readyz"
    call = served.stub.UpdateWorker.future(worker_pb2.UpdateWorkerRequest(worker_id="w"), timeout=SAFETY_SECONDS)
    assert entered.wait(SAFETY_SECONDS)
    stopping = threading.Thread(target=served.stop)
    stopping.start()
    while (found := fetch(url))[0] == 200:
        pass
    assert (found[0], json.loads(found[2])) == (503, {"status": "draining"})
    loops[0].call_soon_threadsafe(opened.set)
    assert call.result().worker.worker_id == "w"
    stopping.join(SAFETY_SECONDS)
    with pytest.raises(urllib.error.URLError):
        fetch(url)


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "encoding"),
    [
        ({}, "application/json"),
        ({"Accept": "application/x-protobuf"}, "application/x-protobuf"),
        ({"Accept": "application/json, application/x-protobuf"}, "application/json"),
        ({"Content_Type": "application/x-protobuf"}, "application/x-protobuf"),
        ({"Accept": "text/html", "Content_Type": "application/json"}, "application/json"),
    ],
)
def test_an_error_has_the_encoding_that_is_asked_for(serve, headers, encoding):
    status, found, body = fetch(base_of(serve(http_port=0)) + "/nothing", **headers)
    assert (status, found["Content-Type"]) == (404, encoding)
    told = json.loads(body)["message"] if encoding == "application/json" else Status.FromString(body).message
    assert told.startswith("there is no /nothing")


@pytest.mark.parametrize(
    "path", ["/../metrics", "/v1/../metrics", "/%2e%2e/metrics", "/metrics/", "//metrics", "/v1%2ftraces/"]
)
@pytest.mark.asyncio
async def test_a_path_that_climbs_leads_nowhere(path):
    async with listening() as (side, port):
        side.note_started()
        answer = await say(port, get(path, "Connection: close"))
    assert statuses(answer) == ["404"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "BREW", "get", "x" * 300])
@pytest.mark.asyncio
async def test_a_method_that_is_none_is_refused(method):
    async with listening() as (side, port):
        side.note_started()
        answer = await say(port, get("/healthz", "Connection: close").replace(b"GET", method.encode(), 1))
    assert statuses(answer) == ["405"]
    assert b"allow: GET, HEAD" in answer
    assert len(answer) < 1000


@pytest.mark.asyncio
async def test_what_a_peer_sends_is_repeated_without_control_characters():
    async with listening() as (side, port):
        side.note_started()
        answer = await say(port, get("/%1b%5b31m%0d%0a%e2%80%ae", "Connection: close"))
    assert statuses(answer) == ["404"]
    told = json.loads(answer.rpartition(b"\r\n\r\n")[2])["message"]
    assert told.isprintable()


# --- Senders that mean no good ---------------------------------------------------------------------------------------

POST = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (POST + b"Content-Length: 2\r\n\r\n\xff\xff\xff\xff\r\n\r\n", "400"),  # shorter than the body
        (POST + b"Content-Length: 9\r\n\r\nx", "408"),  # longer
        (POST + b"Content-Length: -1\r\n\r\n", "400"),
        (POST + b"Content-Length: 0x10\r\n\r\n", "400"),
        (POST + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n", "400"),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz", "400"),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", "501"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n", "400"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab", "408"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", "431"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", "431"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),  # no Host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: y\r\n\r\n", "421"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA b: y\r\n\r\n", "400"),
        (b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", "505"),
        (b"\r\n\r\n\r\n", "400"),
        (b"\x00" * 50, "400"),
    ],
)
@pytest.mark.asyncio
async def test_a_request_that_lies_is_refused_and_the_next_one_served(sent, expected, log):
    limits = {"body_seconds": 0.05} if expected == "408" else {}
    async with listening(**limits, linger_seconds=0.01) as (side, port):
        side.note_started()
        assert statuses(await say(port, sent, ends=expected != "408"))[0] == expected
        assert side.bodies.held_bytes == 0
        assert statuses(await say(port, get("/healthz", "Connection: close"))) == ["200"]
    assert log.left() == []


@pytest.mark.asyncio
async def test_a_client_that_speaks_tls_is_hung_up_on():
    context = ssl.create_default_context()
    async with listening(linger_seconds=0.01) as (_, port):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")


@pytest.mark.asyncio
async def test_a_head_that_comes_by_drops_is_given_up():
    """Each byte is a sign of life, and none gives it more time."""
    async with listening(head_seconds=0.1, linger_seconds=0.01) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def drip():
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.005)

        dripping = asyncio.create_task(drip())
        answer = await asyncio.wait_for(reader.read(), SAFETY_SECONDS)
        dripping.cancel()
        writer.close()
    assert statuses(answer) == ["408"]


@pytest.mark.asyncio
async def test_a_body_that_comes_by_drops_is_given_up():
    async with listening(body_seconds=0.1, linger_seconds=0.01) as (side, port):
        side.note_started()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"Content-Length: 100000\r\n\r\n")

        async def drip():
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.005)

        dripping = asyncio.create_task(drip())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SAFETY_SECONDS)
        dripping.cancel()
        writer.close()
    assert statuses(answer) == ["408"]


@pytest.mark.asyncio
async def test_the_rest_of_a_refused_body_is_dropped_for_a_moment_only():
    async with listening(linger_seconds=0.05) as (side, port):
        side.note_started()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx")
        assert statuses(await asyncio.wait_for(reader.read(), SAFETY_SECONDS)) == ["404"]
        writer.close()


@pytest.mark.asyncio
async def test_who_has_said_all_and_waits_gets_the_answer():
    async with listening() as (side, port):
        side.note_started()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"Content-Length: 0\r\n\r\n")
        writer.write_eof()
        assert statuses(await asyncio.wait_for(reader.read(), SAFETY_SECONDS)) == ["200"]
        writer.close()


@pytest.mark.asyncio
async def test_who_does_not_take_the_answer_is_let_go():
    async def large(_):
        return Response(bytes(50_000_000))

    async with listening(write_seconds=0.05) as (side, port):
        side.add_routes([Route("/large", large)])
        side.note_started()
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(get("/large"))
        while not side.listener.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
        while side.listener.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
        writer.transport.abort()


# --- Origins ---------------------------------------------------------------------------------------------------------

ORIGIN = "https://example.org"


def test_pages_of_a_named_origin_may_call(serve):
    base = base_of(serve(http_port=0, http_cors_origins=(ORIGIN,)))
    _, headers, _ = fetch(base + "/healthz", Origin=ORIGIN)
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    _, headers, _ = fetch(base + "/nothing", Origin=ORIGIN)
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    _, headers, _ = fetch(base + "/healthz", Origin="https://example.com")
    assert headers["Access-Control-Allow-Origin"] is None
    asked = {
        "Origin": ORIGIN,
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "content-type",
    }
    status, headers, _ = fetch(base + "/v1/traces", "OPTIONS", **asked)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)


def test_without_named_origins_no_page_may_call(serve):
    _, headers, _ = fetch(base_of(serve(http_port=0)) + "/healthz", Origin=ORIGIN)
    assert headers["Access-Control-Allow-Origin"] is None


def test_on_loopback_a_page_cannot_have_its_own_name_lead_here(serve, tmp_path):
    """DNS rebinding: the browser then sends the page's own host, and takes the answers for those of its server."""

    def status_for(base, host):
        return fetch(base + "/metrics", Host=host)[0]

    base = base_of(serve(http_port=0, http_allowed_hosts=("Store.local",)))
    port = base.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]"):
        assert status_for(base, host) == 421, host
    for host in ("localhost", f"LOCALHOST:{port}", "a.localhost.", "127.0.0.1", f"[::1]:{port}", "store.local", ""):
        assert status_for(base, host) == 200, host
    # A simple request of another page needs no leave to be sent, and is refused for its type.
    form = {"Content_Type": "text/plain", "Content_Length": "0", "Origin": ORIGIN}
    assert fetch(base + "/v1/traces", "POST", **form)[0] == 415
    tokens = str(tmp_path / "tokens.json")
    token = add_token(tokens, "t", Role.READER, datetime.now(UTC))
    with_tokens = base_of(serve(http_port=0, auth_tokens=tokens))
    headers = {"Host": "store.example", "Authorization": f"Bearer {token}"}
    assert fetch(with_tokens + "/metrics", **headers)[0] == 200
    for path in ("/healthz/../metrics", "//metrics", "/%2e%2e/metrics", "/healthz/", "/metrics/"):
        assert fetch(with_tokens + path)[0] == 401, path


@pytest.mark.asyncio
async def test_beyond_loopback_any_name_leads_to_the_server():
    config = ServerConfig(http_port=0, insecure=True, metrics=False)
    async with LightningStoreServer(InMemoryLightningStore(), "0.0.0.0", 0, config=config) as server:
        url = server.otlp_traces_endpoint().replace("/v1/traces", "/readyz")
        assert (await asyncio.to_thread(fetch, url, Host="store.svc.cluster.local"))[0] == 200


@pytest.mark.parametrize(
    "origin", ["*", "example.org", "https://example.org/", "https://example.org/page", "ftp://x", ""]
)
def test_an_origin_that_is_none_is_refused(origin):
    with pytest.raises(InvalidArgumentError, match=re.escape(f"http_cors_origins has {origin!r}; an origin is like")):
        ServerConfig(http_cors_origins=(origin,))


def test_stages_are_named_for_people():
    assert [*map(str, Stage)] == ["starting", "serving", "leaving", "draining"]
