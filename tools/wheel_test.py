"""Build the wheel, install it where the source tree cannot be seen, and run the smoke tests on it.

Once on the plain install, once with the server extra, each in an empty environment in a temporary directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Command = list[str | Path]
PACKAGES = frozenset(
    {"lightning_store", "lightning_store_server", "lightning_store_client", "lightning_store_agentlightning"}
)
HIDDEN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
RUNS: tuple[tuple[str, tuple[str, ...]], ...] = (("", ("click", "rich", "grpc_reflection")), ("[server]", ()))
"""What is asked for behind the wheel's name, and which packages must not come along."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="wheel-test-") as name:
        directory = Path(name)
        wheel = build(directory / "dist")
        check_contents(wheel)
        for number, (extras, absent) in enumerate(RUNS):
            where = directory / f"install-{number}"
            python = install(where / "venv", f"{wheel}{extras}")
            check_absent(python, absent, where)
            run_smoke_tests(python, where)
    print(f"wheel-test: {wheel.name} works, plain and with the server extra.")
    return 0


def build(target: Path) -> Path:
    """The wheel, built in isolation from the source tree."""
    say("building")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", target, ROOT], cwd=ROOT)
    [wheel] = target.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """The packages, typed and with their stubs, and nothing else at the top."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if tops != PACKAGES:
        sys.exit(f"wheel-test: the wheel holds {sorted(tops)} where {sorted(PACKAGES)} belong")
    wanted = {f"{package}/py.typed" for package in PACKAGES}
    stubs = (ROOT / "src" / "lightning_store" / "v1").glob("*_pb2*.py*")
    wanted |= {f"lightning_store/v1/{stub.name}" for stub in stubs}
    if missing := wanted - set(names):
        sys.exit(f"wheel-test: the wheel lacks {sorted(missing)}")


def install(venv: Path, requirement: str) -> Path:
    """The Python of a new environment that has ``requirement`` in it, and the test runner."""
    say(f"installing {Path(requirement).name} into an empty environment")
    run([sys.executable, "-m", "venv", venv], cwd=venv.parent.parent)
    python = venv / "bin" / "python"
    pip: Command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, requirement], cwd=venv)
    run([*pip, *pinned("pytest", "pytest-timeout")], cwd=venv)
    return python


def pinned(*names: str) -> list[str]:
    """The requirements that the dev extra has for ``names``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    by_name = {line.split("==")[0]: line for line in project["optional-dependencies"]["dev"]}
    return [by_name[name] for name in names]


def check_absent(python: Path, packages: Sequence[str], where: Path) -> None:
    code = f"import importlib.util as u; print(*[p for p in {list(packages)!r} if u.find_spec(p)])"
    found = run([python, "-I", "-c", code], cwd=where, capture=True).strip()
    if found:
        sys.exit(f"wheel-test: a plain install brought {found}")


def run_smoke_tests(python: Path, where: Path) -> None:
    """Run a copy of the tests under the project's pytest settings, with the source tree out of reach."""
    say("running the smoke tests")
    tests = where / "tests"
    shutil.copytree(ROOT / "tests" / "smoke", tests / "smoke", ignore=shutil.ignore_patterns("__pycache__"))
    command: Command = [
        python,
        "-I",
        "-m",
        "pytest",
        "-ra",
        "-W",
        "error",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-o", "markers=slow: starts processes", "--timeout=300", "--rootdir", tests, tests]
    run(command, cwd=where)


def run(command: Command, cwd: Path, capture: bool = False) -> str:
    """The output of ``command`` if asked for; ends the program when the command fails."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES}
    output = subprocess.PIPE if capture else None
    result = subprocess.run(command, cwd=cwd, env=environment, stdout=output, text=True, check=False)
    if result.returncode:
        sys.exit(f"wheel-test: {Path(command[0]).name} {command[1]} … failed with exit code {result.returncode}")
    return result.stdout or ""


def say(what: str) -> None:
    print(f"wheel-test: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
