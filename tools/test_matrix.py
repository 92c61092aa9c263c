"""Run tests on several sets of dependencies and several versions of Python, each in an environment of its own.

    python tools/test_matrix.py [--short] [-- arguments of pytest]

The sets: ``lowest`` has the lower bounds in pyproject.toml, ``protobuf-6`` what goes with that major version, and
``newest`` whatever pip finds. In full each set runs on each Python; ``--short`` runs each of them once.
The environments are kept in ``.venv-matrix``; pip runs again only when pyproject.toml is newer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-matrix"
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = ("server", "templates", "testing", "demo", "bench")
EXPORTERS = ("opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-exporter-otlp-proto-http")
TOOLS = ("h2", "pytest-timeout", "pytest-xdist", "trustme")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="each set and each Python once")
    parser.add_argument("arguments", nargs="*", help="for pytest, after --")
    options = parser.parse_args()
    pairs = list(zip(SETS, PYTHONS, strict=True))
    if not options.short:
        pairs = [(name, version) for name in SETS for version in PYTHONS]
    results = [run(name, version, options.arguments) for name, version in pairs]
    print(f"=== {'; '.join(text for text, _ in results)} ===")
    return int(any(failed for _, failed in results))


def run(name: str, version: str, arguments: list[str]) -> tuple[str, bool]:
    """Run the tests on one set and one Python.

    Returns:
        Its name with the counts of the tests, and whether anything failed.
    """
    title = f"{name} on {version}"
    print(f"--- {title}", flush=True)
    try:
        python = environment(name, version)
    except (LookupError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return f"{title}: error, no environment", True
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    counts = "error, no counts"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="", flush=True)
            if re.match(r"\d+ (passed|failed|skipped|error)", line):
                counts = line.strip()
    return f"{title}: {counts}", tests.returncode != 0


def environment(name: str, version: str) -> Path:
    """The Python of the environment of one set, which is made or brought up to date if need be."""
    directory = ENVIRONMENTS / f"{name}-{version}"
    python = directory / "bin" / "python"
    stamp = directory / ".installed"
    if stamp.exists() and stamp.stat().st_mtime > (ROOT / "pyproject.toml").stat().st_mtime:
        return python
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([interpreter(version), "-m", "venv", directory], check=True)
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join(SETS[name]()), encoding="utf-8")
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--constraint",
        str(constraints),
    ]
    subprocess.run([*pip, "--editable", f".[{','.join(EXTRAS)}]", *EXPORTERS, *TOOLS], cwd=ROOT, check=True)
    stamp.touch()
    return python


def interpreter(version: str) -> str:
    """The path of a Python of ``version``; LookupError if there is none that runs."""
    name = f"python{version}"
    # A shim of pyenv starts only a version that is chosen, globally or by this variable.
    for variables in ({}, {"PYENV_VERSION": version}):
        command = [name, "-c", "import sys; print(sys.executable)"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            found = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
            return found.stdout.strip()
    raise LookupError(f"there is no {name} on PATH that runs")


def lowest() -> Iterator[str]:
    """Each lower bound as the only release. The exporters are released together with the SDK."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in map(Requirement, [*project["dependencies"], *(one for name in EXTRAS for one in extras[name])]):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                yield f"{requirement.name}=={bound.version}"
                if requirement.name == "opentelemetry-sdk":
                    yield from (f"{exporter}=={bound.version}" for exporter in EXPORTERS)


def protobuf_6() -> Iterator[str]:
    yield "protobuf==6.*"
    for name in ("grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-status"):
        yield f"{name}==1.81.*"


def newest() -> Iterator[str]:
    yield from ()


SETS: dict[str, Callable[[], Iterator[str]]] = {"lowest": lowest, "protobuf-6": protobuf_6, "newest": newest}
"""The constraints that make each set, in pip's form."""

if __name__ == "__main__":
    sys.exit(main())
