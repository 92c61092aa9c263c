"""TLS at both ends: what is shown, what is taken, what is refused, and files that change meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from lightning_store import InMemoryLightningStore, StoreUnavailableError, UnauthenticatedError, watched_files
from lightning_store.errors import InvalidArgumentError
from lightning_store.testing import SAFETY_SECONDS, FakeClock
from lightning_store.wire.methods import Role
from lightning_store_client import LightningStoreClient
from lightning_store_server import LightningStoreServer, ServerConfig
from lightning_store_server.tls import ServerTls, expiry_of
from lightning_store_server.tokens import add_token, revoke_token
from tests import logged
from tests.certificates import Authority

pytestmark = pytest.mark.asyncio

NOW = datetime.fromtimestamp(1_700_000_000, UTC)
NO_RETRIES = {"retry_delays": (), "health_retry_delays": (), "timeout": SAFETY_SECONDS}


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def looks_at_once(monkeypatch):
    """Files are looked at whenever it matters what is in them."""
    monkeypatch.setattr(watched_files, "LOOK_SECONDS", 0.0)


def serving(pair, **config):
    settings = ServerConfig(tls_cert=pair.cert, tls_key=pair.key, grace_seconds=0.0, http_port=0, **config)
    return LightningStoreServer(InMemoryLightningStore(), port=0, config=settings)


def client_of(server, **credentials):
    return LightningStoreClient(server.endpoint, **NO_RETRIES, **credentials)


async def works(client):
    """One call of a session, one by itself, one that streams."""
    async with client:
        queued = await client.enqueue_rollout("x" * 2_000_000)
        await client.get_rollout_by_id(queued.rollout_id)
        async for completed in client.watch_rollouts([]):
            raise AssertionError(completed)
        return await client.healthy()


async def refusal(client):
    async with client:
        assert not await client.healthy()
        with pytest.raises(StoreUnavailableError) as caught:
            await client.statistics()
    return str(caught.value)


def certificate_at(port, authority, pair=None, alpn=()):
    """What a server shows there, in DER."""
    context = ssl.create_default_context(cafile=authority.path)
    if alpn:
        context.set_alpn_protocols(alpn)
    if pair is not None:
        context.load_cert_chain(*pair)
    with (
        socket.create_connection(("127.0.0.1", port), SAFETY_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as tls,
    ):
        return tls.getpeercert(binary_form=True)


def der_of(pair):
    return ssl.PEM_cert_to_DER_cert(Path(pair.cert).read_text())


def spoil(path):
    Path(path).write_text("nothing of use")


async def test_calls_sessions_streams_and_http_go_over_tls(authority, tmp_path, monkeypatch):
    path = str(tmp_path / "tokens.json")
    token = add_token(path, "t", Role.ADMIN, NOW)
    async with serving(authority.issue(), auth_tokens=path) as server:
        assert await works(client_of(server, tls=authority.path, token=token))
        clone = pickle.loads(pickle.dumps(client_of(server, tls=authority.path, token=token)))
        assert await works(clone)
        with pytest.raises(UnauthenticatedError):
            await works(client_of(server, tls=authority.path))
        assert token not in repr(client_of(server, token=token).__dict__)
        (tmp_path / "token").write_text(token + "\n")
        monkeypatch.setenv("LIGHTNING_STORE_TLS_CA", authority.path)
        monkeypatch.setenv("LIGHTNING_STORE_TOKEN_FILE", str(tmp_path / "token"))
        assert await works(client_of(server))
        url = server.otlp_traces_endpoint().replace("/v1/traces", "/readyz")
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=authority.path)

        def probe():
            with urlopen(url, timeout=SAFETY_SECONDS, context=context) as answer:
                return answer.status

        assert await asyncio.to_thread(probe) == 200
        request = Request(url.replace("/readyz", "/metrics"), headers={"Authorization": f"Bearer {token}"})
        metrics = await asyncio.to_thread(lambda: urlopen(request, timeout=SAFETY_SECONDS, context=context).read())
        found = re.search(rb"\nlightning_store_certificate_expiry_timestamp_seconds ([\d.e+]+)", metrics)
        assert found is not None
        assert float(found[1]) == expiry_of(str(tmp_path / "server-cert.pem"), str(tmp_path / "server-key.pem"))


async def test_each_form_of_address_is_checked_by_the_name_in_the_certificate(authority, tmp_path):
    pair = authority.issue()
    async with serving(pair) as server:
        port = server.bound_port
        for endpoint in (f"localhost:{port}", f"localhost:{port},127.0.0.1:{port}"):
            async with LightningStoreClient(endpoint, tls=authority.path, **NO_RETRIES) as client:
                await client.statistics()
    settings = ServerConfig(unix_path=str(tmp_path / "s"), tls_cert=pair.cert, tls_key=pair.key, grace_seconds=0.0)
    server = LightningStoreServer(InMemoryLightningStore(), config=settings)
    async with server, client_of(server, tls=authority.path) as client:
        await client.statistics()


async def test_whom_the_client_does_not_trust_it_does_not_call(authority, tmp_path):
    other = Authority(tmp_path, "other")
    async with serving(authority.issue()) as server:
        said = await refusal(client_of(server, tls=other.path))
        assert server.endpoint in said
        await refusal(client_of(server, tls=True))
        await refusal(client_of(server))  # speaks no TLS
        with contextlib.suppress(ConnectionError):
            assert await asyncio.to_thread(said_in_plaintext, http_port_of(server)) == b""
        assert await works(client_of(server, tls=authority.path))
    plain = LightningStoreServer(InMemoryLightningStore(), port=0, config=ServerConfig(grace_seconds=0.0, http_port=0))
    async with plain:
        await refusal(client_of(plain, tls=authority.path))
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(certificate_at, plain.bound_port, authority)
        assert await works(client_of(plain))


async def test_a_server_may_ask_for_certificates_that_an_authority_issued(authority, tmp_path):
    other = Authority(tmp_path, "other")
    good = authority.issue("good")
    foreign = other.issue("foreign")
    expired = authority.issue("expired", expires=datetime(2020, 1, 1, tzinfo=UTC))
    async with serving(authority.issue(), tls_client_ca=authority.path) as server:
        for pair in (None, foreign, expired):
            shown = {} if pair is None else {"tls_client_cert": pair.cert, "tls_client_key": pair.key}
            await refusal(client_of(server, tls=authority.path, **shown))
            http_port = http_port_of(server)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(probe_tls, http_port, authority, pair)
        assert await works(client_of(server, tls=authority.path, tls_client_cert=good.cert, tls_client_key=good.key))
        await asyncio.to_thread(probe_tls, http_port, authority, good)


def http_port_of(server):
    return int(server.otlp_traces_endpoint().split(":")[2].split("/")[0])


def said_in_plaintext(port):
    with socket.create_connection(("127.0.0.1", port), SAFETY_SECONDS) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(100)


def probe_tls(port, authority, pair):
    """With TLS 1.3 a client learns only from the answer that its certificate was refused."""
    context = ssl.create_default_context(cafile=authority.path)
    if pair is not None:
        context.load_cert_chain(*pair)
    with (
        socket.create_connection(("127.0.0.1", port), SAFETY_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = tls.recv(100)
        if not answer:
            raise ConnectionResetError
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_server_shows_a_certificate_as_soon_as_it_is_there(authority, looks_at_once, caplog):
    first = authority.issue()
    first_der = der_of(first)
    async with serving(first) as server:
        ports = [server.bound_port, http_port_of(server)]

        async def shown():
            return {await asyncio.to_thread(certificate_at, port, authority, alpn=["h2"]) for port in ports}

        held = client_of(server, tls=authority.path)
        await held.statistics()
        assert await shown() == {first_der}
        second_der = der_of(authority.issue())
        assert await shown() == {second_der} != {first_der}
        spoil(first.key)
        assert await shown() == {second_der}
        assert "the certificate stays as it was" in caplog.text
        await held.statistics()
        await held.close()


async def test_a_client_connects_anew_when_its_files_change(authority, tmp_path, looks_at_once, caplog):
    path = str(tmp_path / "tokens.json")
    token_file = tmp_path / "token"
    token_file.write_text(add_token(path, "first", Role.ADMIN, NOW))
    good = authority.issue("good")
    async with serving(authority.issue(), auth_tokens=path, tls_client_ca=authority.path) as server:
        client = client_of(
            server,
            tls=authority.path,
            tls_client_cert=good.cert,
            tls_client_key=good.key,
            token_file=str(token_file),
        )
        waiting = asyncio.create_task(client.dequeue_rollout(max_wait=SAFETY_SECONDS))
        await client.statistics()
        stub = client.stub
        assert client.stub is stub
        authority.issue("good")
        token_file.write_text(add_token(path, "second", Role.ADMIN, NOW))
        assert client.stub is not stub
        revoke_token(path, "first", NOW)
        queued = await client.enqueue_rollout("work")
        # What waits on the connection before is answered there.
        claimed = await asyncio.wait_for(waiting, SAFETY_SECONDS)
        assert claimed is not None
        assert claimed.rollout_id == queued.rollout_id
        stub = client.stub
        token_file.write_text("")
        await client.statistics()
        assert client.stub is stub
        assert "the credentials stay as they were: token_file holds no token" in caplog.text
        await client.close()


async def test_a_token_that_has_just_been_replaced_is_read_before_a_call_fails(authority, tmp_path):
    path = str(tmp_path / "tokens.json")
    token_file = tmp_path / "token"
    right = add_token(path, "right", Role.ADMIN, NOW)
    token_file.write_text("lst_wrong")
    async with serving(authority.issue(), auth_tokens=path) as server:
        client = client_of(server, tls=authority.path, token_file=str(token_file))
        with pytest.raises(UnauthenticatedError, match="not known here"):
            await client.statistics()
        token_file.write_text(right)  # and no second has passed
        await client.statistics()
        await client.close()


# --- Files that are not what they should be --------------------------------------------------------------------------


async def test_what_is_no_certificate_is_told_at_once(authority, tmp_path):
    pair, other = authority.issue(), authority.issue("other")
    expired = authority.issue("expired", expires=datetime(2020, 1, 1, tzinfo=UTC))
    (tmp_path / "text").write_text("text")
    text = str(tmp_path / "text")
    for cert, key, ca, said in (
        (text, pair.key, None, "are no certificate with its key"),
        (pair.cert, other.key, None, "are no certificate with its key"),
        (pair.cert, str(tmp_path / "nothing"), None, "cannot be read: No such file"),
        (pair.cert, pair.key, text, "holds no certificates of authorities"),
        (pair.cert, pair.key, pair.key, "holds no certificates of authorities"),
        (*expired, None, "has expired"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            ServerTls(cert, key, ca)
    for credentials, said in (
        ({"tls": text}, "holds no certificates of authorities"),
        ({"tls": True, "tls_client_cert": pair.cert}, "give both tls_client_cert and tls_client_key"),
        ({"tls": True, "tls_client_cert": pair.cert, "tls_client_key": other.key}, "are no certificate with its key"),
        ({"tls": False, "tls_client_cert": pair.cert, "tls_client_key": pair.key}, "tls is False"),
        ({"token": "a\nb"}, "holds no token"),
        ({"token": "a", "token_file": text}, "not both"),
        ({"token_file": str(tmp_path / "nothing")}, "cannot be read"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            LightningStoreClient("localhost:4747", **credentials)
    with pytest.raises(InvalidArgumentError, match="a token is not taken from an address") as caught:
        LightningStoreClient("lst_secret@localhost:4747")
    assert "lst_secret" not in str(caught.value)


async def test_a_certificate_that_is_about_to_expire_is_warned_of_once_a_day(authority, caplog):
    clock = FakeClock()
    expires = datetime.fromtimestamp(clock.now(), UTC) + timedelta(days=20)
    pair = authority.issue(expires=expires)
    assert expiry_of(*pair) == expires.timestamp()
    tls = ServerTls(pair.cert, pair.key, clock=clock)
    assert tls.expires == expires.timestamp()
    assert not logged.records(caplog)
    clock.advance(7 * 86_400)
    for _ in range(3):
        assert tls.expires
    assert logged.warnings(caplog) == [f"the certificate in {pair.cert} expires in 13.0 days"]
    clock.advance(14 * 86_400)
    assert tls.expires
    assert logged.warnings(caplog)[-1] == f"the certificate in {pair.cert} has expired"
