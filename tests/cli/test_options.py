"""Flags, their variables, and the values that they take."""

from __future__ import annotations

import dataclasses
import inspect
import re

import click
import pytest

from lightning_store import InMemoryLightningStore
from lightning_store_server import ServerConfig
from lightning_store_server.app import REPLAY_ENTRIES_MAX, REPLAY_WINDOW_SECONDS
from lightning_store_server.cli.connecting import endpoint
from lightning_store_server.cli.options import (
    Retention,
    parse_bytes,
    parse_retention,
    parse_threshold,
    parse_time,
)
from lightning_store_server.cli.root import root
from lightning_store_server.cli.serve import serve
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8000000000", 8_000_000_000),
        ("8e9", 8_000_000_000),
        ("64MiB", 64 * 2**20),
        ("64 mib", 64 * 2**20),
        ("8GB", 8_000_000_000),
        ("1.5GiB", 3 * 2**29),
        ("2k", 2000),
        ("2Ki", 2048),
        ("5B", 5),
        (str(2**62 + 1), 2**62 + 1),
    ],
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "-1", "GiB", "8PiB", "8 GiB x", "nan", "inf", "1e999", "٣", "0x10"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="8GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.7", 0.7),
        ("1", 1.0),
        ("1.0", 1.0),
        ("8e9", 8_000_000_000),
        ("8GiB", 8 * 2**30),
        ("2B", 2),
        ("16777216", 2**24),
    ],
)
def test_parse_threshold_tells_ratios_from_bytes(text: str, value: float) -> None:
    parsed = parse_threshold(text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize("text", ["1.5", "-0.5", "nan", "inf", "most"])
def test_parse_threshold_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_threshold(text)


@pytest.mark.parametrize("text", ["8", "0", "2", "1024", "1e7", "16777215"])
def test_a_small_threshold_needs_a_unit(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"{text}GiB or {text}B"):
        parse_threshold(text)


@pytest.mark.parametrize(
    ("text", "length"),
    [("90", 90), ("0", 0), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("12 H", 43_200), ("365d", 31_536_000)],
)
def test_parse_time(text: str, length: float) -> None:
    assert parse_time(text) == length


@pytest.mark.parametrize("text", ["", "h", "-1s", "1w", "1h30m", "nan", "inf", "1e3", "٣s", "1" * 20])
def test_parse_time_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="12h"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("1", Retention(count=1)),
        (" 10000 ", Retention(count=10_000)),
        ("3600s", Retention(seconds=3600)),
        ("0.5h", Retention(seconds=1800)),
        ("7d", Retention(seconds=604_800)),
    ],
)
def test_parse_retention_tells_how_many_from_how_long(text: str, kept: Retention) -> None:
    assert parse_retention(text) == kept


@pytest.mark.parametrize("text", ["", "0", "0s", "0.0h", "1.5", "-1", "-1h", "1e4", "many", "1" * 30])
def test_parse_retention_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="12h"):
        parse_retention(text)


@pytest.mark.parametrize("text", ["localhost:4747", "10.0.0.1:1", "[::1]:65535", "store.example.org:80"])
def test_endpoint(text: str) -> None:
    assert endpoint(click.Context(serve), serve.params[0], text) == text


@pytest.mark.parametrize(
    "text", ["", "localhost", ":4747", "localhost:", "h:0", "h:65536", "h:x", "::1:4747", "a b:1", "http://h:1", "h:²"]
)
def test_endpoint_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter):
        endpoint(click.Context(serve), serve.params[0], text)


CHANGING = {"enqueue", "cancel", "requeue", "delete", "delete-workers", "delete-resources", "export", "import"}
"""What these change, or take along, is said on the command line, and nowhere else."""
CREDENTIALS = {"--token-file", "--tls", "--tls-ca", "--tls-client-cert", "--tls-client-key"}
"""Of each command that speaks to a server."""
WITH_VARIABLES = {"--server", "--timeout", "--json"}
WITHOUT_A_VARIABLE = {
    *(("backup", "--to"), ("restore", "--overwrite")),
    *(("workers", "--status"), ("workers", "--contains")),
    *(("serve", "--print-config"), ("serve", "--check")),
    *(("admission", "--max-open-groups"), ("admission", "--paused"), ("admission", "--unbounded")),
}


def all_options() -> list[tuple[str, click.Option]]:
    return [
        (name, option)
        for name, command in root.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and (option.opts[0] not in CREDENTIALS or name == "health")
    ]


@pytest.mark.parametrize(
    ("command", "option"), [pytest.param(*pair, id=f"{pair[0]} {pair[1].opts[0]}") for pair in all_options()]
)
def test_each_flag_shows_its_variable(run: Run, command: str, option: click.Option) -> None:
    variable = "LIGHTNING_STORE_" + option.opts[0].removeprefix("--").replace("-", "_").upper()
    flag = option.opts[0]
    has_one = (command not in CHANGING or flag in WITH_VARIABLES) and (command, flag) not in WITHOUT_A_VARIABLE
    first = option.envvar[0] if isinstance(option.envvar, list) else option.envvar  # those of older names follow
    assert first == (variable if has_one else None)
    assert option.help
    shown = re.sub(r"\s+", "", run(command, "--help").output)
    assert (f"envvar:{variable}" in shown) == has_one


def test_each_setting_of_the_server_is_a_flag_with_its_default() -> None:
    context = serve.make_context("serve", [])
    config = ServerConfig(**{f.name: context.params[f.name] for f in dataclasses.fields(ServerConfig)})
    assert config == ServerConfig()


def test_defaults_of_the_replay_window_are_those_of_the_store() -> None:
    parameters = inspect.signature(InMemoryLightningStore).parameters
    assert parameters["replay_window_seconds"].default == REPLAY_WINDOW_SECONDS
    assert parameters["replay_entries_max"].default == REPLAY_ENTRIES_MAX


def test_flag_wins_over_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_STORE_PORT", "1111")
    monkeypatch.setenv("LIGHTNING_STORE_STRICT", "1")
    monkeypatch.setenv("LIGHTNING_STORE_GRACE", "1.5")
    monkeypatch.setenv("LIGHTNING_STORE_MAX_MESSAGE_BYTES", "2MiB")
    assert serve.make_context("serve", []).params["port"] == 1111
    params = serve.make_context("serve", ["--port", "2222"]).params
    assert (params["port"], params["strict"]) == (2222, True)
    assert (params["grace_seconds"], params["max_message_bytes"]) == (1.5, 2 * 2**20)


def test_variable_that_kubernetes_sets_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_STORE_PORT", "tcp://10.96.0.17:4747")
    assert serve.make_context("serve", []).params["port"] == ServerConfig().port


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "65536"),
        ("--port", "x"),
        ("--max-message-bytes", "0"),
        ("--max-message-bytes", "2GiB"),
        ("--page-rows-max", "0"),
        ("--page-bytes-max", "many"),
        ("--wait-max", "0"),
        ("--grace", "-1"),
        ("--grace", "nan"),
        ("--grace", "inf"),
        ("--keepalive", "1e9"),
        ("--replay-window", "0"),
        ("--replay-entries-max", "0"),
        ("--eviction-memory-threshold", "1.5"),
        ("--memory-limit", "1.5"),
        ("--memory-limit", "8"),
        ("--memory-limit", "most"),
        ("--retain-finished", "0"),
        ("--retain-finished", "1.5"),
        ("--retain-finished", "-1h"),
        ("--retain-finished", "some"),
        ("--log-level", "loud"),
        ("--log-format", "xml"),
        ("--colour", "red"),
        ("extra",),
    ],
    ids=" ".join,
)
def test_wrong_flags_of_serve_exit_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("serve", *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_wrong_variable_exits_with_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_STORE_LOG_LEVEL", "loud")
    assert run("serve").exit_code == 2


def test_help_has_the_exit_codes(run: Run) -> None:
    output = run("serve", "--help").output
    assert re.findall(r"^ +(\d+)  \w", output, re.MULTILINE) == [
        *("0", "2", "65", "66", "69", "70", "73", "74", "75", "78")
    ]
