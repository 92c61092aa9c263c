"""The sessions in docs/operations.md, as they stand but for the ports."""

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
SECONDS_MAX = 120


def chapter(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def block(chapter: str, kind: str) -> str:
    """Empty if there is none."""
    found = re.search(rf"^```{kind}\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    return "" if found is None else found[1]


def commands(chapter: str) -> list[tuple[str, str]]:
    """Each command with what it prints."""
    parts = re.split(r"^\$ ", block(chapter, "console"), flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("openssl") is None, reason="needs curl and openssl")
@pytest.mark.parametrize("title", ["A session", "TLS and tokens"])
def test_the_session_runs_as_it_is_written(tmp_path: Path, title: str) -> None:
    written = chapter(title)
    session, ports = commands(written), free_ports()

    def here(text: str) -> str:
        for documented, port in zip(("4747", "4318"), ports, strict=True):
            text = text.replace(documented, str(port))
        return text

    (tmp_path / "server.toml").write_text(here(block(written, "toml")))
    (tmp_path / "runner.py").write_text(here(block(written, "python")))
    script = ["set -m", f"export LIGHTNING_STORE_SERVER=localhost:{ports[0]}"]
    for number, (command, _) in enumerate(session):
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
    assert len(outputs) == len(session), ended.stderr + said
    for (command, wanted), output in zip(session, outputs, strict=True):
        assert output.strip() == here(wanted).strip(), f"{command}: {ended.stderr}{said}"


def free_ports() -> list[int]:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in (first, second)]
