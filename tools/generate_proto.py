"""Everything that is done with proto/: generate the Python code, check that it is current, run buf's checks.

    python tools/generate_proto.py generate    write src/lightning_store/v1
    python tools/generate_proto.py check       exit 1 and name the files that generate would write otherwise
    python tools/generate_proto.py lint        buf lint
    python tools/generate_proto.py breaking    buf breaking, against the protos of the last git tag

The protos import each other and protobuf's well-known types, which protoc brings along. protoc is that of
``.venv-protoc``, which ``make`` installs; its plugins are those of this script's environment. buf checks the image that
protoc makes of them. It runs through npx; where that is missing, lint and breaking say so, and fail in CI only (``CI``
is set).
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
SOURCE_ROOT = ROOT / "src"
PACKAGE = Path("lightning_store/v1")
SERVICE = PACKAGE / "service.proto"
PROTOC_PYTHON = ROOT / ".venv-protoc" / "bin" / "python"
BUF = "@bufbuild/buf@1.75.0"
INIT = '"""Generated from proto/lightning_store/v1 by `make proto`; not to be edited."""\n'


class ToolError(Exception):
    """A tool that this script runs has failed; it has said why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"generate": generate, "check": check, "lint": lint, "breaking": breaking}
    parser.add_argument("command", choices=commands)
    try:
        return commands[parser.parse_args().command]()
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1


def generate() -> int:
    """Write the generated package anew, so that what a removed proto left behind goes too."""
    with generated_package() as package:
        target = SOURCE_ROOT / PACKAGE
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(package, target)
    return 0


def check() -> int:
    """Compare the generated package with what would be generated now."""
    with generated_package() as package:
        wanted = {path.name for path in package.iterdir()}
        target = SOURCE_ROOT / PACKAGE
        found = {path.name for path in target.iterdir() if path.is_file()} if target.is_dir() else set()
        _, different, unreadable = filecmp.cmpfiles(package, target, wanted & found, shallow=False)
    stale = sorted(set(different) | set(unreadable) | (wanted ^ found))
    for name in stale:
        print(f"{target.relative_to(ROOT) / name} is not what proto/ says: run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def lint() -> int:
    """buf lint, with the rules in buf.yaml."""
    if not npx_is_there("buf lint"):
        return int(in_ci())
    with tempfile.TemporaryDirectory() as scratch:
        image = build_image(PROTO_ROOT, Path(scratch))
        return run_buf("lint", str(image))


def breaking() -> int:
    """buf breaking, against the last tag that can be reached from here."""
    tag = last_tag()
    if tag is None:
        print("buf breaking: skipped, there is no git tag to compare with")
        return 0
    if not npx_is_there("buf breaking"):
        return int(in_ci())
    with tempfile.TemporaryDirectory() as now, tempfile.TemporaryDirectory() as then:
        protos = protos_of_tag(tag, Path(then))
        if protos is None:
            print(f"buf breaking: skipped, {tag} has no proto/")
            return 0
        image = build_image(PROTO_ROOT, Path(now))
        return run_buf("breaking", str(image), "--against", str(build_image(protos, Path(then))))


# --- protoc ----------------------------------------------------------------------------------------------------------


@contextmanager
def generated_package() -> Iterator[Path]:
    """A directory with the package as it should be; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        sources = proto_files(PROTO_ROOT)
        run_protoc(PROTO_ROOT, sources, f"--python_out={out}", f"--mypy_out=quiet:{out}")
        run_protoc(PROTO_ROOT, [SERVICE], f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}")
        (out / PACKAGE / "__init__.py").write_text(INIT)
        yield out / PACKAGE


def build_image(proto_root: Path, scratch: Path) -> Path:
    """A descriptor set of all protos below ``proto_root`` with what they import and their comments, as buf takes it."""
    image = scratch / "image.binpb"
    options = ("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
    run_protoc(proto_root, proto_files(proto_root), *options)
    return image


def proto_files(proto_root: Path) -> list[Path]:
    return sorted(path.relative_to(proto_root) for path in proto_root.rglob("*.proto"))


def run_protoc(proto_root: Path, sources: list[Path], *options: str) -> None:
    bin_directory = Path(sys.executable).parent
    plugins = [f"--plugin={bin_directory / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    command = [str(PROTOC_PYTHON), "-m", "grpc_tools.protoc", f"-I{proto_root}"]
    run([*command, *plugins, *options, *map(str, sources)])


# --- buf and git -----------------------------------------------------------------------------------------------------


def npx_is_there(what: str) -> bool:
    if shutil.which("npx"):
        return True
    print(f"{what}: not run, npx is missing; install Node.js to run it", file=sys.stderr)
    return False


def in_ci() -> bool:
    return bool(os.environ.get("CI"))


def run_buf(*arguments: str) -> int:
    """buf's exit code; it prints its findings."""
    return subprocess.run(["npx", "--yes", BUF, *arguments, "--config", str(ROOT / "buf.yaml")], check=False).returncode


def last_tag() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def protos_of_tag(tag: str, scratch: Path) -> Path | None:
    """proto/ as it was at ``tag``, written below ``scratch``; None if there was none."""
    listed = run(["git", "-C", str(ROOT), "ls-tree", "--name-only", tag, "proto"])
    if not listed:
        return None
    archive = run(["git", "-C", str(ROOT), "archive", "--format=tar", tag, "proto"])
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(scratch, filter="data")
    return scratch / "proto"


def run(command: list[str]) -> bytes:
    """What the command prints. What it says on stderr passes through."""
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if result.returncode:
        raise ToolError(f"{' '.join(command[:3])} … failed with exit code {result.returncode}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
