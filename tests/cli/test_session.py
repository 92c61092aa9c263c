"""The session in docs/cli.md: each command prints what the document says, at the widths of usual terminals."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_store import InMemoryLightningStore
from lightning_store_server import LightningStoreServer
from lightning_store_server.cli.root import root

DOCUMENT = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(console|python)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
ID = re.compile(r"\b(?:ro-[0-9a-f]{12}|at-[0-9a-f]{8})\b")
VARYING = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
    (r"\b(?:\d+s ago|now)\b", "AGE"),
    (r"\boldest (?:\d+s|now)", "oldest AGE"),
    (r"\b[\d.]+m?s\b", "LENGTH"),
    (r"localhost:\d+|127\.0\.0\.1:\d+", "SERVER"),
    (r"\{\"host\".*", "STATS"),
)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command, or "python" and the program, with the lines that it prints."""
    for kind, block in BLOCKS:
        if kind == "python":
            yield block, []
            continue
        for one in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = one.splitlines()
            yield command, lines


def words_of(line: str) -> list[str]:
    """The words of a line, with others in the place of times."""
    for pattern, word in VARYING:
        line = re.sub(pattern, word, line)
    return line.split()


def same(line: str, wanted: str) -> bool:
    """Whether two lines say the same; of those that were cut off, as far as both say it."""
    found, expected = words_of(line), words_of(wanted)
    if "…" in line or "…" in wanted:
        length = min(len(found), len(expected)) - 2
        found, expected = found[:length], expected[:length]
    return found == expected


@pytest.fixture
def server() -> Iterator[LightningStoreServer]:
    server = LightningStoreServer(InMemoryLightningStore(), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.mark.parametrize("width", [80, 120])
def test_the_session(run, server, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LIGHTNING_STORE_SERVER", server.endpoint)
    ids: dict[str, str] = {}
    """By the id that the document has."""

    def with_real_ids(text: str) -> str:
        return ID.sub(lambda found: ids.get(found[0], found[0]), text)

    for command, expected in commands():
        if "asyncio.run" in command:
            exec(compile(command.replace("localhost:4747", server.endpoint), "docs/cli.md", "exec"), {})
            continue
        program, *arguments = shlex.split(with_real_ids(command))
        assert program == "lightning-store-grpc"
        if arguments[0] == "serve":
            continue
        result = run(*arguments)
        lines = (result.stdout + result.stderr).splitlines()
        assert len(lines) == len(expected), command
        for line, wanted in zip(lines, expected, strict=True):
            ids |= zip(ID.findall(wanted), ID.findall(line), strict=False)
            assert len(line) <= width or line.startswith("Error: "), command
            if width == 80:
                assert same(line, with_real_ids(wanted)), f"{command} printed {line!r}"


def test_every_command_is_in_the_document() -> None:
    named = {row.split("`")[1].split()[0] for row in DOCUMENT.splitlines() if row.startswith("| `")}
    assert set(root.commands) <= named
    in_session = {command.split()[1] for command, _ in commands() if command.startswith("lightning-store-grpc")}
    assert {"enqueue", "rollouts", "rollout", "workers", "watch", "cancel", "requeue", "delete"} <= in_session
