"""The session in docs/operations.md, as it stands but for the ports."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
SECONDS_MAX = 60


def block(kind: str) -> str:
    found = re.search(rf"^```{kind}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def commands() -> list[tuple[str, str]]:
    """Each command with what it prints."""
    parts = re.split(r"^\$ ", block("console"), flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_session_runs_as_it_is_written(tmp_path: Path) -> None:
    ports = free_ports()

    def here(text: str) -> str:
        for written, port in zip(("4747", "4318"), ports, strict=True):
            text = text.replace(written, str(port))
        return text

    (tmp_path / "server.toml").write_text(here(block("toml")))
    script = ["set -m", f"export LIGHTNING_STORE_SERVER=localhost:{ports[0]}"]
    for number, (command, _) in enumerate(commands()):
        script.append(f"echo; echo '--- {number}'")
        if command.endswith("&"):  # what it prints comes when it is ready
            script.append(f"{here(command).removesuffix('&')} >ready.txt &")
            script.append("until grep -q serving ready.txt; do kill -0 %1 || exit 1; done; cat ready.txt")
        else:
            script.append(here(command))
    ended = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    outputs = re.split(r"^--- \d+\n", ended.stdout, flags=re.MULTILINE)[1:]
    said = (tmp_path / "server.log").read_text() if (tmp_path / "server.log").exists() else ""
    assert len(outputs) == len(commands()), ended.stderr + said
    for (command, wanted), output in zip(commands(), outputs, strict=True):
        assert output.strip() == here(wanted).strip(), f"{command}: {ended.stderr}{said}"


def free_ports() -> list[int]:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in (first, second)]
