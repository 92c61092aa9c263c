"""The benchmarks on PostgreSQL, from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cli, records
from benchmarks.cells.contention import CELLS, HELD_CELL
from tools.postgres_server import PostgresServer


def test_cells_on_postgresql_from_end_to_end(
    postgres: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("postgres", "--postgres", postgres.dsn(), "--sides", "ours,postgres", "--only", f"enqueue,{','.join(CELLS)}"),
        *("--callers", "2", "--seconds", "0.05", "--rounds", "2", "--hold", "0.2", "--output", str(tmp_path)),
    ]
    assert cli.main(arguments) == 0
    [file] = tmp_path.glob("*.jsonl")
    found = records.read(file)
    assert {(one.cell, one.side) for one in found} == {
        ("enqueue", "ours"),
        ("enqueue", "postgres"),
        ("dequeue_held", "postgres"),
        ("dequeue_held", "postgres-held"),
        ("two_servers", "postgres"),
        ("two_servers", "postgres-pair"),
    }
    assert all(one.metrics["calls_per_second"].low > 0 and one.metrics["server_cpu_us"].median >= 0 for one in found)
    assert all("late_calls_per_second" in one.metrics for one in found if one.cell == HELD_CELL)
    told = capsys.readouterr().out
    assert "late_calls_per_second >= 0.7 x postgres" in told
    assert "calls_per_second >= 0.3 x ours" not in told  # a target of 64 callers


def test_a_database_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["postgres", "--sides", "ours,postgres", "--only", HELD_CELL, "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "give --postgres URL" in capsys.readouterr().err
    assert cli.main([*arguments, "--postgres", f"postgresql://u@/d?host={tmp_path}"]) == 1
    assert "the database fails" in capsys.readouterr().err
