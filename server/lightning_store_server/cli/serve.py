"""The command ``serve``: flags become settings, signals become a drain, the outcome becomes an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn, get_args

import click

from lightning_store.arguments import is_postgres
from lightning_store.engine.policy import Fence
from lightning_store.errors import InvalidArgumentError, StoreError
from lightning_store.memory_limits import EVICTION_RATIO_DEFAULT, LIMIT_RATIO_DEFAULT, SAFE_RATIO_DEFAULT
from lightning_store.store import LightningStore
from lightning_store_server.app import (
    FREE_BYTES_MIN,
    REPLAY_ENTRIES_MAX,
    REPLAY_WINDOW_SECONDS,
    WORKER_TIMEOUT_SECONDS,
    Durability,
    GrpcServer,
    access_of,
    memory_store,
    postgres_store,
    sqlite_store,
    tls_of,
)
from lightning_store_server.cli import PROGRAM
from lightning_store_server.cli.exit_codes import ExitCode, exit_code_of
from lightning_store_server.cli.options import (
    INT64_MAX,
    NAMESPACE,
    Retention,
    Whole,
    database,
    names,
    optional_size,
    retention,
    seconds,
    setting,
    size,
    span_of_time,
    switch,
    threshold,
)
from lightning_store_server.cli.settings import read_settings, refuse_foreign, settings_text
from lightning_store_server.config import INT32_MAX, ServerConfig
from lightning_store_server.garbage import GarbageWatch
from lightning_store_server.heap import keep_freed_memory
from lightning_store_server.logs import LogFormat, configure_logging
from lightning_store_server.text import byte_size

logger = logging.getLogger("lightning_store_server")

DEFAULTS: Final = ServerConfig()


EPILOG: Final = """\
\b
Exit codes:
   0  stopped by SIGTERM, SIGINT or SIGHUP; every call was finished or told to go elsewhere
   2  a flag, a variable or the file of settings has a value that is not legal
  65  the database is damaged, or a file of something else
  66  the folder of the database does not exist
  69  the port or the database is in use, the address is not this machine's, the database cannot be reached, or the
      servers that share it have other rules
  70  an internal failure; the log has its cause
  73  the database cannot be written: its file or its folder can only be read
  74  the disk of the database is full, or it fails
  75  stopped, but calls were cut: they outlasted --grace, or a second signal came
  78  settings that contradict each other, tokens or certificates that cannot be read, or a database of a newer version
"""


@click.command(epilog=EPILOG)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    callback=read_settings,
    is_eager=True,
    expose_value=False,
    envvar="LIGHTNING_STORE_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="Take settings from this TOML file, whose keys are the flags without their dashes: http-port = 4318. Flags and"
    " variables win over it.",
)
@click.option("--print-config", is_flag=True, help="Print the settings in force as such a file, and end.")
@click.option("--check", is_flag=True, help="Check the settings, and end: 0 if they are legal.")
@setting("--host", default=DEFAULTS.host, help="Address to listen on.")
@setting("--port", type=Whole(0, 65535), default=DEFAULTS.port, help="Port; 0 takes any free one.")
@setting(
    "--unix",
    "unix_path",
    metavar="PATH",
    help="Listen on this Unix domain socket instead of host and port. Whoever may write to it may use the store.",
)
@setting(
    "--http-port",
    "--otlp-http-port",
    "http_port",
    type=Whole(0, 65535),
    default=None,
    help="Serve HTTP on this port: the operator's page, /metrics, /healthz, /readyz, /startupz, and spans as OTLP at"
    " /v1/traces; 0 takes any free one. The second name is an older one.",
)
@setting(
    "--http-cors-origin",
    "http_cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin (https://example.org) call the HTTP side from a browser. May be repeated.",
)
@setting(
    "--http-allowed-host",
    "http_allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Let the HTTP side be called by this name, on loopback without tokens. May be repeated.",
)
@setting(
    "--auth-tokens",
    metavar="FILE",
    help="Take calls only with a token of this file, which `token create` makes.",
)
@setting("--tls-cert", metavar="FILE", help="Speak TLS, on gRPC and on HTTP, with this certificate (PEM).")
@setting("--tls-key", metavar="FILE", help="The key of that certificate (PEM, without a password).")
@setting(
    "--tls-client-ca",
    metavar="FILE",
    help="Take only connections of callers with a certificate that an authority in this file issued (PEM).",
)
@switch("--insecure", help="Listen beyond loopback though everybody who can reach it may do everything.")
@setting(
    "--metrics/--no-metrics",
    default=DEFAULTS.metrics,
    help="Measure calls, for /metrics of the HTTP side.",
)
@database(
    "--database",
    help="Where the data is kept. In memory it ends with the process; in a database it survives. Several servers may"
    " share one of PostgreSQL; give its password by PGPASSFILE or PGPASSWORD.",
)
@setting(
    "--namespace", default=NAMESPACE, help="For PostgreSQL. Which store in the database: 1 to 40 of a-z, 0-9 and _."
)
@setting(
    "--database-connections",
    type=click.IntRange(3, 1000),
    default=10,
    help="For PostgreSQL. How many connections this server opens at the most.",
)
@seconds(
    "--database-timeout",
    default=30.0,
    help="For PostgreSQL. After how long a statement is given up; one that waits for another server, after a third.",
)
@setting(
    "--statement-cache-size",
    type=click.IntRange(0, 10_000),
    default=200,
    help="For PostgreSQL. Statements that a connection keeps prepared; 0 for PgBouncer before 1.21.",
)
@setting(
    "--durability",
    type=click.Choice(get_args(Durability)),
    default="full",
    help="For SQLite. What an acknowledged call survives: a loss of power, or no more than the end of the process.",
)
@optional_size(
    "--disk-limit",
    help="For SQLite. With more of the file in use, calls that would store more are told to come again; reporting"
    " and deleting go on.",
)
@optional_size(
    "--disk-reserve",
    show_default=byte_size(FREE_BYTES_MIN),
    help="For SQLite. With less left on the disk, calls that would store more are told to come again.",
)
@switch("--strict", help="Apply the strict rules: unknown ids are errors, finished rollouts only go back to the queue.")
@switch(
    "--final-outcomes",
    help="Keep finished rollouts as they are: reports that come later are recorded on the attempt only, and nothing but"
    " putting a rollout back into the queue changes its status.",
)
@setting(
    "--fence-attempts",
    type=click.Choice(["refuse", "keep"]),
    default=None,
    help="Give attempts that were cancelled or superseded no more span numbers, and refuse their spans, or keep these"
    " without any effect. Without it they count as any.",
)
@size("--max-message-bytes", default=DEFAULTS.max_message_bytes, help="The largest request that is taken.")
@setting(
    "--request-items-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.request_items_max,
    metavar="ITEMS",
    help="Items of one list in a request, such as rollouts to enqueue.",
)
@setting(
    "--calls-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.calls_max,
    metavar="CALLS",
    help="Calls under way at once; more are told when to come again. Heartbeats have as many places of their own.",
)
@setting(
    "--waits-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.waits_max,
    metavar="CALLS",
    help="Calls that wait for work or for rollouts at once, beside the others.",
)
@setting(
    "--stream-queries-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.stream_queries_max,
    metavar="CALLS",
    help="Queries with a streamed result under way at once, beside the others.",
)
@setting(
    "--connections-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.connections_max,
    metavar="CONNECTIONS",
    help="Connections of gRPC at once.",
)
@setting(
    "--streams-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.streams_max,
    metavar="STREAMS",
    help="Calls and sessions on one connection at once; its client keeps back more.",
)
@seconds(
    "--connection-idle",
    "idle_seconds",
    min=1,
    default=DEFAULTS.idle_seconds,
    help="A connection without calls is closed after so long.",
)
@seconds(
    "--handshake-timeout",
    "handshake_seconds",
    min=0.1,
    default=DEFAULTS.handshake_seconds,
    help="A connection that has not begun to speak by then is closed.",
)
@setting(
    "--sessions-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.sessions_max,
    metavar="SESSIONS",
    help="Processes with a client that are connected at once.",
)
@setting(
    "--watches-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.watches_max,
    metavar="CALLS",
    help="Watches of the health, and reflections, at once.",
)
@size(
    "--queued-bytes-max",
    default=DEFAULTS.queued_bytes_max,
    max=INT64_MAX,
    help="Requests worked on and replies not sent yet, in bytes, for each of these kinds of calls.",
)
@size(
    "--read-ahead-bytes",
    default=DEFAULTS.read_ahead_bytes,
    help="What is read of a request before its turn comes; more suits a slow network, less a small memory.",
)
@setting(
    "--page-rows-max",
    type=Whole(1, INT32_MAX),
    default=DEFAULTS.page_rows_max,
    metavar="ROWS",
    help="Rows in one reply to a query.",
)
@size("--page-bytes-max", default=DEFAULTS.page_bytes_max, help="Bytes in one reply to a query; one row may be larger.")
@seconds(
    "--wait-max",
    "wait_seconds_max",
    min_open=True,
    default=DEFAULTS.wait_seconds_max,
    help="How long one call may wait for rollouts; clients ask again.",
)
@seconds(
    "--max-connection-age",
    "max_connection_age_seconds",
    default=DEFAULTS.max_connection_age_seconds,
    help="Have clients connect anew after this long, give or take a tenth; 0 never.",
)
@seconds(
    "--drain-delay",
    "drain_delay_seconds",
    default=DEFAULTS.drain_delay_seconds,
    help="How long to take calls as before when told to stop, though not ready any more: until load balancers know.",
)
@seconds(
    "--grace",
    "grace_seconds",
    default=DEFAULTS.grace_seconds,
    help="How long calls under way may take when the server is told to stop.",
)
@seconds(
    "--keepalive",
    "keepalive_seconds",
    min=1,
    default=DEFAULTS.keepalive_seconds,
    help="A connection silent for this long is probed.",
)
@seconds(
    "--keepalive-timeout",
    "keepalive_timeout_seconds",
    min=0.1,
    default=DEFAULTS.keepalive_timeout_seconds,
    help="It is closed if the probe gets no answer for this long.",
)
@threshold(
    "--eviction-memory-threshold",
    show_default=f"{EVICTION_RATIO_DEFAULT} of memory",
    help="For memory. Spans beyond this are dropped, those of the oldest finished rollouts first: a share of the"
    " machine's memory (0.7) or bytes (8GiB).",
)
@threshold(
    "--safe-memory-threshold",
    show_default=f"{SAFE_RATIO_DEFAULT} of the eviction threshold",
    help="For memory. Once it has begun, dropping goes on until spans take no more than this.",
)
@threshold(
    "--memory-limit",
    show_default=f"{LIMIT_RATIO_DEFAULT} of memory",
    help="For memory, and all that is stored. Beyond it spans of finished rollouts are dropped; with none left, calls"
    " that would store more are told to come again.",
)
@retention(
    "--retain-finished",
    help="Delete finished rollouts with all that belongs to them: keep so many, those that ended last (10000), or each"
    " for so long (3600s, 15m, 12h, 7d). Without it they are kept until somebody deletes them.",
)
@names(
    "--retain-for",
    help="Consumers of a training run: --retain-finished keeps what one of them has not consumed.",
)
@names(
    "--drop-spans",
    help="Do not store spans with these names. They begin their attempt and keep it alive as others do.",
)
@seconds(
    "--worker-timeout",
    "worker_timeout_seconds",
    default=WORKER_TIMEOUT_SECONDS,
    help="A worker that sends heartbeats and is silent for this long counts as dead, and its attempt as unresponsive;"
    " 0 never.",
)
@span_of_time(
    "--retain-workers",
    "worker_retention_seconds",
    default="7d",
    help="Forget workers that are at work on nothing and were silent for so long (12h, 7d); 0 never.",
)
@seconds(
    "--replay-window",
    "replay_window_seconds",
    min_open=True,
    default=REPLAY_WINDOW_SECONDS,
    help="How long the reply to a request id is kept for a client that asks again.",
)
@setting(
    "--replay-entries-max",
    type=Whole(1),
    default=REPLAY_ENTRIES_MAX,
    metavar="REPLIES",
    help="How many such replies are kept at most.",
)
@switch("--access-log", help="Log a line at level info for each call.")
@setting(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    help="The least level that is logged, to stderr.",
)
@setting("--log-format", type=click.Choice(get_args(LogFormat)), default="text", help="For people or for programs.")
def serve(
    *,
    database: str | None,
    namespace: str,
    database_connections: int,
    database_timeout: float,
    statement_cache_size: int,
    durability: Durability,
    disk_limit: int | None,
    disk_reserve: int | None,
    strict: bool,
    final_outcomes: bool,
    fence_attempts: Fence | None,
    worker_timeout_seconds: float,
    worker_retention_seconds: float,
    eviction_memory_threshold: float | int | None,
    safe_memory_threshold: float | int | None,
    memory_limit: float | int | None,
    retain_finished: Retention,
    retain_for: tuple[str, ...],
    drop_spans: Sequence[str],
    replay_window_seconds: float,
    replay_entries_max: int,
    log_level: str,
    log_format: LogFormat,
    print_config: bool,
    check: bool,
    **settings: Any,
) -> NoReturn:
    """Serve a store until SIGTERM, SIGINT or SIGHUP.

    Prints one line when ready, with the endpoint. The first signal begins the drain: health turns NOT_SERVING, then,
    after --drain-delay, waits end, and calls under way may finish. A second one ends the process at once.
    """
    if print_config:
        click.echo(settings_text(click.get_current_context()))
        sys.exit(ExitCode.STOPPED)
    configure_logging(log_level, log_format)
    try:
        config = ServerConfig(**settings)
        common: dict[str, Any] = {
            "strict": strict,
            "final_outcomes": final_outcomes,
            "fence_attempts": fence_attempts or "off",
            "worker_timeout_seconds": worker_timeout_seconds,
            "worker_retention_seconds": worker_retention_seconds or None,
            "retain_finished_seconds": retain_finished.seconds,
            "retain_finished_count": retain_finished.count,
            "retain_for": retain_for,
            "drop_spans": drop_spans,
            "replay_window_seconds": replay_window_seconds,
            "replay_entries_max": replay_entries_max,
        }
        sizes_of_disk = {"size_bytes_max": disk_limit, "free_bytes_min": disk_reserve}
        limits: dict[str, Any] = {
            "eviction_memory_threshold": eviction_memory_threshold,
            "safe_memory_threshold": safe_memory_threshold,
            "memory_limit": memory_limit,
        }
        disk = {name: value for name, value in sizes_of_disk.items() if value is not None}
        refuse_foreign(click.get_current_context())
        if database is None:
            what = "memory store, strict" if strict else "memory store"
            held = memory_store(**common, **limits)
            code = _check(config) if check else asyncio.run(run(held, config, what))
        elif check:
            code = _check(config)
        elif is_postgres(database):
            common |= {
                "namespace": namespace,
                "connections": database_connections,
                "statement_timeout": database_timeout,
                "lock_timeout": database_timeout / 3,
                "statement_cache_size": statement_cache_size,
            }
            what = "PostgreSQL store, strict" if strict else "PostgreSQL store"
            code = asyncio.run(_run_on_postgres(database, common, config, what))
        else:
            what = "SQLite store, strict" if strict else "SQLite store"
            with contextlib.closing(sqlite_store(database, durability=durability, **common, **disk)) as store:
                code = asyncio.run(run(store, config, what))
    except StoreError as error:
        code = exit_code_of(error)
        settings_at_fault = code is ExitCode.CONFIG and isinstance(error, InvalidArgumentError)
        logger.error("%s%s", "the settings cannot be served: " if settings_at_fault else "", error)
    except ImportError as error:
        logger.error("%s", error)
        code = ExitCode.CONFIG
    except Exception:
        logger.exception("internal failure")
        code = ExitCode.SOFTWARE
    sys.exit(code)


async def _run_on_postgres(dsn: str, settings: dict[str, Any], config: ServerConfig, what: str) -> ExitCode:
    async with postgres_store(dsn, **settings) as store:
        return await run(store, config, what)


def _check(config: ServerConfig) -> ExitCode:
    access_of(config)
    tls_of(config)
    click.echo("the settings are legal")
    return ExitCode.STOPPED


async def run(store: LightningStore, config: ServerConfig, what: str) -> ExitCode:
    """Serve until a signal, then drain. Why it ended."""
    keep_freed_memory()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # as nohup has it
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    server = GrpcServer(store, config)
    try:
        await server.start()
    except OSError as error:
        logger.error("%s", error.strerror or error)
        return ExitCode.UNAVAILABLE
    if server.bound_http_port is not None:
        what = f"{what}, HTTP on {address(config.host, server.bound_http_port)}"
    click.echo(ready_line(config.unix_path or config.host, server.bound_port, what))
    with GarbageWatch():
        first = await signals.get()
    logger.info("%s: draining; calls under way have %g s, a second signal cuts them", first.name, config.grace_seconds)
    return await drain(server, config, signals)


def ready_line(host: str, port: int | None, what: str) -> str:
    """What tells people and programs that calls are taken, and where."""
    return f"{PROGRAM} serving on {address(host, port)} ({what}, version {importlib.metadata.version(PROGRAM)})"


def address(host: str, port: int | None) -> str:
    """Without a port, ``host`` is the path of a Unix domain socket."""
    if port is None:
        return f"unix://{os.path.abspath(host)}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def drain(server: GrpcServer, config: ServerConfig, signals: asyncio.Queue[signal.Signals]) -> ExitCode:
    """Stop ``server``; one more of ``signals`` ends the process instead."""
    stop = asyncio.ensure_future(server.stop())
    second = asyncio.ensure_future(signals.get())
    await asyncio.wait({stop, second}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.done():
        logger.warning("%s: ending at once", second.result().name)
        end_at_once(ExitCode.TEMPFAIL)
    second.cancel()
    if not stop.result():
        logger.warning("calls did not finish within %g s and were cut", config.grace_seconds)
        return ExitCode.TEMPFAIL
    logger.info("stopped")
    return ExitCode.STOPPED


def end_at_once(code: ExitCode) -> NoReturn:
    """End the process without waiting for anything that is under way."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
