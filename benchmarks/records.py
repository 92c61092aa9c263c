"""Results as data: a value with its spread, one measured cell, and the file of JSON lines that keeps them."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROJECT_ROOT: Final = Path(__file__).resolve().parents[1]

Transport = Literal["wire", "process"]
"""Client and server in two processes on loopback, or the store in the caller's own process."""

_PACKAGES: Final = (
    "lightning-store-grpc", "agentlightning", "grpcio", "protobuf", "pydantic", "aiohttp", "uvicorn", "fastapi",
)  # fmt: skip


class ResultsError(ValueError):
    """A file of results cannot be read. The message names the file and the line."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Frozen):
    """The median of several rounds, with all of them."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value, in the order in which they were measured."""
        rounds = tuple(values)
        return cls(median=statistics.median(rounds), low=min(rounds), high=max(rounds), rounds=rounds)


def ratio(ours: Spread, other: Spread) -> Spread | None:
    """Our median over the other one, with the spread of the ratios of the rounds that were measured in turn.

    None if the other median is 0. Where the rounds cannot be paired, the ratio of the medians is all there is.
    """
    if other.median == 0:
        return None
    median = ours.median / other.median
    if len(ours.rounds) != len(other.rounds) or not all(other.rounds):
        return Spread(median=median, low=median, high=median, rounds=())
    paired = tuple(mine / theirs for mine, theirs in zip(ours.rounds, other.rounds, strict=True))
    return Spread(median=median, low=min(paired), high=max(paired), rounds=paired)


def percentile(ascending: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values: the least one that is not below ``share`` (0 to 1) of them."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


class Environment(_Frozen):
    """Where and with what a run was made."""

    started_at: datetime
    python: str
    system: str
    processor: str
    cores: int
    load_average: float
    """Runnable processes in the minute before the run. Much above 0, and the machine was not ours alone."""
    commit: str | None
    packages: dict[str, str]

    @classmethod
    def here(cls) -> Environment:
        """This machine and interpreter, now."""
        return cls(
            started_at=datetime.now(UTC),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            system=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            load_average=round(os.getloadavg()[0], 2),
            commit=_commit(),
            packages=dict(_versions()),
        )


class Record(_Frozen):
    """One cell of one side: one line of a results file."""

    cell: str
    transport: Transport
    side: str
    callers: int | None = None
    """Concurrent callers in one client process; None where the cell has no such number."""
    size: int | None = None
    """Rollouts that were stored; None where the cell does not vary it."""
    metrics: dict[str, Spread] = Field(default_factory=dict)
    """By name, which ends in the unit: ``calls_per_second``, ``p50_ms``, ``server_cpu_us`` (a call), …"""
    errors: dict[str, int] = Field(default_factory=dict)
    """What callers saw fail, over all rounds, and how often. Failed calls are in no metric."""
    failure: str | None = None
    """Why the cell could not be measured."""
    environment: Environment

    @property
    def key(self) -> tuple[str, Transport, int | None, int | None]:
        """What records of different sides have in common."""
        return self.cell, self.transport, self.callers, self.size

    @property
    def is_clean(self) -> bool:
        """Whether it was measured and no caller saw an error."""
        return self.failure is None and not self.errors


def append(path: Path, record: Record) -> None:
    """Add a line to a results file."""
    with path.open("a", encoding="utf-8") as lines:
        lines.write(record.model_dump_json(exclude_none=True) + "\n")


def read(path: Path) -> list[Record]:
    """All records of a results file. ResultsError names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            raise ResultsError(f"{path}, line {number} is no result: {error.errors()[0]['msg']}") from error
    return records


def _processor() -> str:
    """The processor's name; platform.processor() is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _commit() -> str | None:
    """What git calls this checkout; None outside of one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _versions() -> Iterable[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
