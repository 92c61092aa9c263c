"""The command's entry point."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from lightning_store_server.cli import main


def run_main(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["lightning-store-grpc", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == f"lightning-store-grpc {importlib.metadata.version('lightning-store-grpc')}\n"


@pytest.mark.parametrize("package", ["click", "rich"])
def test_base_install_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run_main("--version", monkeypatch=monkeypatch) == 2
    needs = f"lightning-store-grpc needs the package {package}, of its extra server"
    expected = f"{needs}: pip install click rich\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("arguments", [("--help",), ("rollouts", "-h")])
def test_help(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(*arguments, monkeypatch=monkeypatch) == 0
    assert "Usage: lightning-store-grpc" in capsys.readouterr().out
