"""Build and run the examples in Go and Node.js, with nothing of ours but proto/.

    python tools/test_languages.py build              generate, compile and type-check them
    python tools/test_languages.py run HOST:PORT      … and run them against a server there
    python tools/test_languages.py run                … against a server of their own

Go and Node.js must be installed; what the examples need beside them is downloaded. protoc is that of ``.venv-protoc``,
which ``make`` installs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
PROTOC_PYTHON = ROOT / ".venv-protoc" / "bin" / "python"
GO = ROOT / "examples" / "go"
GO_MODULE = "lightning-store-grpc/go"
GO_PLUGINS = (
    "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2",
)
NODE = ROOT / "examples" / "node"
STOP_SECONDS_MAX = 30
EXPECTED = re.compile(
    r"ro-\S+ ROLLOUT_STATUS_SUCCEEDED\n1 act .*reward.*1.*\n2 answer .*token_ids.*42.*7.*\n", re.MULTILINE
)


class ToolError(Exception):
    """An example or a tool that it needs has failed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "run"])
    parser.add_argument("endpoint", nargs="?", metavar="HOST:PORT")
    arguments = parser.parse_args()
    try:
        build_go()
        build_node()
        if arguments.command == "run":
            with server(arguments.endpoint) as endpoint:
                check("Go", run(["go", "run", ".", endpoint], GO))
                check("Node.js", run(["node", "main.js", endpoint], NODE))
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def build_go() -> None:
    """Generate the package that the example imports, and vet both."""
    require("go")
    target = GO / "lightning_store"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as plugins:
        for plugin in GO_PLUGINS:
            run(["go", "install", plugin], GO, GOBIN=plugins)
        options = [
            f"--{name}_{kind}={value}"
            for name in ("go", "go-grpc")
            for kind, value in (("out", str(GO)), ("opt", f"module={GO_MODULE}"))
        ]
        sources = [str(path.relative_to(PROTO_ROOT)) for path in sorted(PROTO_ROOT.rglob("*.proto"))]
        command = [str(PROTOC_PYTHON), "-m", "grpc_tools.protoc", f"-I{PROTO_ROOT}", *options, *sources]
        run(command, ROOT, PATH=f"{plugins}{os.pathsep}{os.environ['PATH']}")
    run(["go", "vet", "-mod=mod", "./..."], GO)


def build_node() -> None:
    """Install what the example needs, and have it parsed."""
    require("npm")
    run(["npm", "install", "--no-audit", "--no-fund", "--silent", "--no-package-lock"], NODE)
    run(["node", "--check", "main.js"], NODE)


def require(command: str) -> None:
    if shutil.which(command) is None:
        raise ToolError(f"{command} is missing; install it to run the examples")


@contextmanager
def server(endpoint: str | None) -> Iterator[str]:
    """The endpoint of a server, which is stopped afterwards if it was started here."""
    if endpoint is not None:
        yield endpoint
        return
    command = [str(Path(sys.executable).with_name("lightning-store-grpc")), "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        found = re.search(r"\S+:\d+", ready)
        if found is None:
            raise ToolError(f"the server did not start: {ready!r}")
        yield found[0]
    finally:
        process.terminate()
        process.wait(STOP_SECONDS_MAX)


def check(language: str, output: str) -> None:
    if not EXPECTED.fullmatch(output):
        raise ToolError(f"the example in {language} printed something else than expected:\n{output}")
    print(f"{language}: passed")


def run(command: list[str], directory: Path, **environment: str) -> str:
    """What the command prints. What it says on stderr passes through."""
    result = subprocess.run(
        command, cwd=directory, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        raise ToolError(f"{' '.join(command[:3])} failed with exit code {result.returncode}\n{result.stdout}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
