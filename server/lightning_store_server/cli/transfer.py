"""The commands that keep what a store holds in a file, and bring it into a store: export, import."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.metadata
import io
import json
import os
import secrets
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import IO, Any, Final, TypeAlias, TypeVar

import click

from lightning_store.arguments import is_postgres
from lightning_store.clock import SystemClock
from lightning_store.errors import (
    InvalidArgumentError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from lightning_store.model import ResourcesUpdate, Span
from lightning_store.spans.document import decode
from lightning_store.spans.labels import ATTEMPT_ID, ROLLOUT_ID, SEQUENCE_ID
from lightning_store.spans.otlp import json_requests
from lightning_store.spans.otlp.requests import export_request
from lightning_store.store import LightningStore
from lightning_store.v1.resources_pb2 import Resources
from lightning_store.v1.rollout_pb2 import Admission
from lightning_store.v1.transfer_pb2 import Checkpoint, ExportRolloutsResponse, StoredRollout
from lightning_store.v1.worker_pb2 import Worker as WorkerMessage
from lightning_store_client import LightningStoreClient
from lightning_store_server.app import GrpcServer, postgres_store, sqlite_store
from lightning_store_server.cli import PROGRAM, export_lines
from lightning_store_server.cli.connecting import client_of, on_any_server
from lightning_store_server.cli.exit_codes import ExitCode, exit_code_of, fail
from lightning_store_server.cli.options import database_url, namespace, seconds
from lightning_store_server.cli.selecting import Selection, selecting
from lightning_store_server.config import ServerConfig
from lightning_store_server.text import byte_size

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Told: TypeAlias = Callable[[int, int | None], None]
"""How much is done, and of how much; None if that is not known."""

DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
STANDARD: Final = "-"
"""In the place of a file's name: standard output, or input."""
ROWS_AT_ONCE: Final = 20
"""Resources or workers that are asked for at a time."""
BATCH_BYTES: Final = 4 * 1024 * 1024
BATCH_ITEMS: Final = 200
"""What one call imports, at the most; a larger item is alone."""
KEEPING: Final[dict[str, Any]] = {"worker_timeout_seconds": 0.0, "worker_retention_seconds": None}
"""Policy of a store that is opened for its content: nobody is given up or forgotten meanwhile."""

EXIT_CODES: Final = """\
\b
Exit codes:
   0  done
   1  no answer from the server, or it refused
   2  a flag or variable has a value that is not legal
  65  the file of an import is damaged, or cut off; or the database is
  66  there is no such file, or no such namespace
  69  the database is in use, or cannot be reached
  73  a file cannot be written
  74  the disk is full, or it fails
  78  the database is of a newer version, or the package is missing that speaks to it
"""


def on_store(command: F) -> F:
    """The flags that say which store it is: a server's, or that in a database, whose file no server has open."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
        found = None if value is None else database_url(value)
        if value is not None and found is None:
            raise click.BadParameter("a store in memory is in its server; name that with --server")
        return found

    # No variable: that of a server's database must not turn this away from the server.
    database = click.option(
        "--database",
        callback=parse,
        metavar="sqlite:PATH|postgresql://…",
        help="A database in the place of a server: a SQLite database that no server has open, or one of PostgreSQL.",
    )
    timeout = seconds("--timeout", min_open=True, default=60.0, help="Give one call up after this long.")
    return on_any_server(database(namespace(click.option)(timeout(command))))


@click.command(epilog=EXIT_CODES)
@on_store
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "otlp"]),
    default="jsonl",
    show_default=True,
    help="Everything, a line of JSON each, for import and for programs; or the spans alone, as requests of OTLP/JSON.",
)
@click.option("--output", default=STANDARD, metavar="FILE|-", help="Where to write; - is standard output.")
@selecting(variables=False)
def export(
    server: str,
    database: str | None,
    namespace: str,
    timeout: float,
    form: str,
    output: str,
    **flags: Any,
) -> None:
    """Write rollouts with their attempts and spans to a file, from a server that goes on meanwhile.

    Resources are in it too, with the keys that they hold; and workers and the bounds of runs, unless flags choose
    rollouts. So the file is for its owner alone (0600). Each rollout is as it is at one moment.
    """
    selection = Selection.of(flags)

    async def write(client: LightningStoreClient) -> Counter[str]:
        with _written(output) as file, _progress("export", "rollouts") as told:
            if form == "otlp":
                return await _export_otlp(client, selection, file, told)
            return await _export_lines(client, selection, file, told)

    if database is not None and not is_postgres(database) and not os.path.isfile(database):
        fail(f"there is no file {database}", ExitCode.NOINPUT)
    store = None if database is None else _store_in(database, namespace, create=False)
    counts = _on_client(server, store, timeout, write)
    click.echo(f"exported {_counted(counts)}", err=True)
    if counts["left out"]:
        click.echo("left out are spans whose ids have not the form of OpenTelemetry", err=True)


@click.command("import", epilog=EXIT_CODES)
@click.argument("file", metavar="FILE")
@on_store
def import_(file: str, server: str, database: str | None, namespace: str, timeout: float) -> None:
    """Bring what export wrote as jsonl into a store; FILE - is standard input.

    What the store has already stays as it is, so that an import that was cut off can be made again. Ids, statuses,
    attempts, spans and times are kept. What is queued goes to the tail of the queue, in its order. What has ended
    counts as ended now for watch_rollouts and --retain-finished.
    """

    async def read(client: LightningStoreClient) -> tuple[Counter[str], Counter[str], bool]:
        with _opened(file) as lines, _progress("import", "bytes") as told:
            importing = _Import(client)
            size_bytes = os.fstat(lines.fileno()).st_size if file != STANDARD else None
            whole = await importing.read(lines, lambda done: told(done, size_bytes))
            return importing.imported, importing.present, whole

    store = None if database is None else _store_in(database, namespace, create=True)
    imported, present, whole = _on_client(server, store, timeout, read)
    click.echo(f"imported {_counted(imported)}")
    if present.total():
        click.echo(f"present already: {_counted(present)}")
    if not whole:
        fail(f"{file} has no last line: it was cut off; what is in it was imported", ExitCode.DATAERR)


# --- The store -------------------------------------------------------------------------------------------------------


def _store_in(database: str, namespace: str, *, create: bool) -> AbstractAsyncContextManager[LightningStore]:
    """The store in a database, beside the servers that may serve it: their rules hold."""
    if is_postgres(database):
        return postgres_store(database, namespace=namespace, create=create, adopt_rules=True, **KEEPING)
    return _store_in_file(database)


@asynccontextmanager
async def _store_in_file(path: str) -> AsyncIterator[LightningStore]:
    with contextlib.closing(sqlite_store(path, **KEEPING)) as store:
        yield store


def _on_client(
    server: str,
    store: AbstractAsyncContextManager[LightningStore] | None,
    timeout: float,
    work: Callable[[LightningStoreClient], Awaitable[T]],
) -> T:
    """The result of ``work``, or one clear line and an exit code."""

    async def session() -> T:
        async with _client(server, store, timeout) as client:
            return await work(client)

    try:
        return asyncio.run(session())
    except (StoreUnavailableError, StoreTimeoutError) as error:
        if store is not None:
            fail(str(error), exit_code_of(error))
        raise click.ClickException(f"no answer from a store at {server}: {error}") from None
    except StoreError as error:
        if store is not None or "problem" in error.details:
            fail(str(error), exit_code_of(error))
        raise click.ClickException(f"the store at {server} refused: {error}") from None
    except ImportError as error:
        fail(str(error), ExitCode.CONFIG)


@asynccontextmanager
async def _client(
    server: str, store: AbstractAsyncContextManager[LightningStore] | None, timeout: float
) -> AsyncIterator[LightningStoreClient]:
    """Of the server that is named, or of one of this process alone, for a store in a database."""
    if store is None:
        async with client_of(server, timeout=timeout) as client:
            yield client
        return
    async with store as opened:
        own = GrpcServer(opened, ServerConfig(port=0))
        await own.start()
        try:
            async with LightningStoreClient(f"127.0.0.1:{own.bound_port}", tls=False, timeout=timeout) as client:
                yield client
        finally:
            await own.stop()


# --- Export ----------------------------------------------------------------------------------------------------------


async def _export_lines(client: LightningStoreClient, selection: Selection, file: IO[str], told: Told) -> Counter[str]:
    counts: Counter[str] = Counter(rollouts=0, spans=0, resources=0, workers=0)
    whole = selection.is_empty

    def write(line: str) -> None:
        file.write(line + "\n")

    write(export_lines.head_line(SystemClock().now(), importlib.metadata.version(PROGRAM)))
    async for resources in _all_resources(client):
        write(export_lines.resources_line(resources))
        counts["resources"] += 1
    async for page in _pages(client, selection, told):
        for checkpoint in page.checkpoints:  # before the rollouts that are in them
            write(export_lines.checkpoint_line(checkpoint))
        for admission in page.admissions if whole else ():
            write(export_lines.admission_line(admission))
        counts.update({"checkpoints": len(page.checkpoints), "admissions": len(page.admissions) if whole else 0})
        for part in page.rollouts:
            write(export_lines.rollout_line(part))
            counts["rollouts"] += not part.spans_before
            counts["spans"] += len(part.spans)
    if whole:  # after the attempts that they hold
        async for worker in _rows(client.query_workers):
            write(export_lines.worker_line(worker))
            counts["workers"] += 1
    write(export_lines.end_line(counts))
    return counts


async def _export_otlp(client: LightningStoreClient, selection: Selection, file: IO[str], told: Told) -> Counter[str]:
    counts: Counter[str] = Counter(rollouts=0, spans=0)
    async for page in _pages(client, selection, told):
        for part in page.rollouts:
            spans = [_labelled(decode(one.document_json, one.sequence_id)) for one in part.spans]
            legal = [span for span in spans if _has_otlp_form(span)]
            if legal:
                file.write(json_requests.dump(export_request(legal)) + "\n")
            counts["rollouts"] += not part.spans_before
            counts["spans"] += len(legal)
            counts["left out"] += len(spans) - len(legal)
    return +counts


def _labelled(span: Span) -> Span:
    """With the attributes that tell where it belongs, as the server takes it from an exporter."""
    labels = {ROLLOUT_ID: span.rollout_id, ATTEMPT_ID: span.attempt_id, SEQUENCE_ID: span.sequence_id}
    return span.model_copy(update={"attributes": {**labels, **span.attributes}})


def _has_otlp_form(span: Span) -> bool:
    try:
        export_request([span])
    except InvalidArgumentError:
        return False
    return True


async def _pages(
    client: LightningStoreClient, selection: Selection, told: Told
) -> AsyncIterator[ExportRolloutsResponse]:
    seen = 0
    async for page in client.export_pages(status_in=selection.statuses or None, **selection.filters):
        for index in reversed(range(len(page.rollouts))):
            if not _is_chosen(selection, page.rollouts[index]):
                del page.rollouts[index]
        yield page
        seen += page.seen
        told(seen, max(seen, page.total))


def _is_chosen(selection: Selection, part: StoredRollout) -> bool:
    metadata_json = part.rollout.metadata_json if selection.metadata else ""
    return selection.matches(part.rollout.rollout_id, json.loads(metadata_json) if metadata_json else None)


async def _all_resources(client: LightningStoreClient) -> AsyncIterator[ResourcesUpdate]:
    """The latest ones last: those that come later become the latest where they are imported."""
    latest = await client.get_latest_resources()
    async for resources in _rows(client.query_resources):
        if latest is None or resources.resources_id != latest.resources_id:
            yield resources
    if latest is not None:
        yield latest


async def _rows(query: Callable[..., Awaitable[Any]]) -> AsyncIterator[Any]:
    """All rows of a query, some at a time."""
    offset = 0
    while rows := list(await query(limit=ROWS_AT_ONCE, offset=offset)):
        for row in rows:
            yield row
        offset += len(rows)


@contextmanager
def _written(output: str) -> Iterator[IO[str]]:
    """The file to write, which gets its name when it is whole."""
    if output == STANDARD:
        file = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        yield file
        file.flush()
        file.detach()
        return
    made = f"{output}.{secrets.token_hex(4)}.partial"
    try:
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, output)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as error:
        code = ExitCode.IOERR if error.errno in DISK_ERRORS else ExitCode.CANTCREAT
        fail(f"{output} cannot be written: {error.strerror}", code)


# --- Import ----------------------------------------------------------------------------------------------------------

_KINDS: Final = {
    StoredRollout: "rollouts",
    Resources: "resources",
    WorkerMessage: "workers",
    Checkpoint: "checkpoints",
    Admission: "admissions",
}
"""What each is to ``import_stored``."""


class _Import:
    """Sends what the lines of a file stand for, some at a time.

    Rollouts are sent in the order of the file, which is that in which they were made; but those that are queued wait in
    a temporary file, since the order of the queue is another one.
    """

    def __init__(self, client: LightningStoreClient) -> None:
        self._client = client
        self.imported: Counter[str] = Counter()
        self.present: Counter[str] = Counter()
        self._batch: dict[str, list[Any]] = {kind: [] for kind in _KINDS.values()}
        self._size_bytes = 0

    async def read(self, lines: Iterable[bytes], told: Callable[[int], None]) -> bool:
        """Import all lines. Whether the last of an export is among them."""
        done = 0
        ended = begun = False
        workers: list[WorkerMessage] = []
        with tempfile.TemporaryFile() as queued:
            places, offsets = array("q"), array("q")
            for number, text in enumerate(lines, start=1):
                line = _line(number, text, begun)
                begun = True
                if isinstance(line, StoredRollout) and line.HasField("queue_position"):
                    places.append(line.queue_position)
                    offsets.append(queued.tell())
                    queued.write(text)
                elif isinstance(line, WorkerMessage):
                    workers.append(line)
                elif isinstance(line, dict):
                    ended = line["type"] == "end"
                else:
                    await self._add(line)
                done += len(text)
                told(done)
            for index in sorted(range(len(places)), key=places.__getitem__):
                queued.seek(offsets[index])
                await self._add(_line(0, queued.readline(), True))
        for worker in workers:  # after the attempts that they hold
            await self._add(worker)
        await self._send()
        return ended

    async def _add(self, item: Any) -> None:
        size_bytes = item.ByteSize()
        count = sum(map(len, self._batch.values()))
        if count and (self._size_bytes + size_bytes > BATCH_BYTES or count >= BATCH_ITEMS):
            await self._send()
        self._batch[_KINDS[type(item)]].append(item)
        self._size_bytes += size_bytes

    async def _send(self) -> None:
        reply = await self._client.import_stored(**self._batch)
        for kind in ("rollouts", "spans", "resources", "workers", "checkpoints", "admissions"):
            self.imported[kind] += getattr(reply.imported, kind)
            self.present[kind] += getattr(reply.present, kind)
        self._batch = {kind: [] for kind in self._batch}
        self._size_bytes = 0


def _line(number: int, text: bytes, begun: bool) -> Any:
    try:
        line = export_lines.read_line(text)
        is_head = isinstance(line, dict) and line["type"] == "export"
        if is_head == begun:
            raise InvalidArgumentError("the first line, and no other, is that of an export")
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"line {number}: {error}", problem="damaged") from None
    return line


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == STANDARD:
        yield sys.stdin.buffer
        return
    try:
        with open(file, "rb") as opened:
            yield opened
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror or error}", ExitCode.NOINPUT)


# --- What is said ----------------------------------------------------------------------------------------------------


def _counted(counts: Mapping[str, int]) -> str:
    """Such as "3 rollouts, 1 span"; of what not every store has, nothing if there is none."""
    return ", ".join(
        f"{count} {kind if count != 1 else kind.removesuffix('s') if kind != 'resources' else kind}"
        for kind, count in counts.items()
        if count or kind not in ("checkpoints", "admissions")
    )


@contextmanager
def _progress(label: str, unit: str) -> Iterator[Told]:
    """Shows on a terminal how far it is; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console  # slow to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description} {task.fields[done]}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(label, total=None, done="")

        def told(done: int, total: int | None) -> None:
            shown = byte_size(done) if unit == "bytes" else f"{done} {unit}"
            bars.update(bar, completed=done, total=total, done=shown)

        yield told
