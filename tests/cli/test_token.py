"""The commands that look after the file of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_store_server.tokens import digest_of
from tests.cli.conftest import Run


def test_a_token_is_made_listed_and_revoked(run: Run, tmp_path: Path) -> None:
    file = ("--auth-tokens", str(tmp_path / "tokens.json"))
    limits = ("--calls-per-second", "50", "--spans-per-second", "2.5", "--bytes-per-second", "8MB")
    made = run("token", "create", "gpu", "--role", "runner", "--worker", "a-*", "--expires", "90d", *limits, *file)
    assert made.exit_code == 0
    token = made.stdout.strip()
    assert token.startswith("lst_")
    assert digest_of(token) in (tmp_path / "tokens.json").read_text()
    shown = run("token", "list", *file).stdout
    assert "as a-*; 50 calls/s; 2.5 spans/s; 8e+06 bytes/s" in shown
    assert "counts until" in shown
    [listed] = json.loads(run("token", "list", "--json", *file).stdout)
    assert listed["limits"] == {"calls_per_second": 50, "spans_per_second": 2.5, "bytes_per_second": 8_000_000}
    assert (listed["role"], listed["workers"], "sha256" in listed) == ("runner", ["a-*"], False)
    assert run("token", "revoke", "gpu", *file).stdout == "revoked gpu\n"
    assert "revoked" in run("token", "list", *file).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("create", "a", "--role", "admin", "--worker", "w"), 2, "--worker is for the role runner"),
        (("create", "a", "--role", "boss"), 2, "'boss' is not one of 'reader', 'runner', 'algorithm', 'admin'"),
        (("create", "a", "--role", "runner", "--bytes-per-second", "0"), 2, "give more than 0"),
        (("create", "a", "--role", "runner", "--calls-per-second", "-1"), 2, "-1"),
        (("create", "a b", "--role", "runner"), 78, "name: String should match pattern"),
        (("revoke", "a"), 78, "make one with `lightning-store-grpc token create`"),
        (("list",), 78, "cannot be read"),
    ],
)
def test_what_is_not_legal_is_told(run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    result = run("token", *arguments, "--auth-tokens", str(tmp_path / "tokens.json"))
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "tokens.json").exists()
