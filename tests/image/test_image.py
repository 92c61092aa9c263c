"""The image of the Dockerfile, built and run by docker or podman. `make test-image` runs these alone.

IMAGE_ENGINE names the program if it is not to be the first that answers; IMAGE_BUILD_ARGS has further arguments of its
`build`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_store_client import SyncLightningStoreClient
from tools.postgres_server import PostgresServer, binaries

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
ENGINES = ("docker", "podman")
DATA = "/var/lib/lightning-store"
USER = 10001
STOP_SECONDS = "60"
LOCKED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp")
"""How the files in deploy/ run it."""

LOOK = """
import glob, importlib.util, json, os, shutil

tops = set(os.listdir("/")) - {"dev", "proc", "sys"}
folders = [folder for top in tops for folder, _, _ in os.walk(f"/{top}")]
print(json.dumps({
    "ids": [os.getuid(), os.getgid(), os.getgroups()],
    "folder": os.getcwd(),
    "writable": [folder for folder in folders if os.access(folder, os.W_OK)],
    "programs": [name for name in ("cc", "gcc", "ld", "make", "pip", "pip3", "git") if shutil.which(name)],
    "pip": bool(importlib.util.find_spec("pip")) or glob.glob("/usr/local/lib/python3*/site-packages/pip"),
    "sources": os.path.exists("/source"),
    "packages": os.listdir(glob.glob("/opt/lightning-store/lib/python3*/site-packages")[0]),
}))
"""


class Engine:
    """The command line of docker or podman, and an image that it has built."""

    def __init__(self, program: str, image: str) -> None:
        self.program = program
        self.image = image
        self._containers: list[str] = []
        self._volumes: list[str] = []
        self._numbers = itertools.count()

    def call(self, *arguments: str, exit_code: int = 0) -> str:
        """What a command prints.

        Raises:
            AssertionError: It ended with another exit code.
        """
        ran = subprocess.run([self.program, *arguments], capture_output=True, text=True, check=False)
        assert ran.returncode == exit_code, f"{arguments}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def run(self, *arguments: str, options: tuple[str, ...] = (), exit_code: int = 0) -> str:
        """What a container prints that lives for one command."""
        return self.call("run", "--rm", *options, self.image, *arguments, exit_code=exit_code)

    def serve(self, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """The name of a container whose server is ready, with port 4747 published."""
        name = self._name()
        self._containers.append(name)
        published = ("--publish=127.0.0.1::4747",)
        self.call(
            "run", "--detach", f"--name={name}", *published, *options, self.image, "serve", "--host=0.0.0.0", *arguments
        )
        with subprocess.Popen(
            [self.program, "logs", "--follow", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as logs:
            assert logs.stdout is not None
            seen = []
            for line in logs.stdout:
                seen.append(line)
                if "lightning-store-grpc serving on" in line:
                    logs.kill()
                    return name
        raise AssertionError("".join(seen))

    def endpoint(self, name: str) -> str:
        return self.call("port", name, "4747").splitlines()[0]

    def health(self) -> list[str]:
        """The command of the image's health check."""
        [told] = json.loads(self.call("image", "inspect", self.image))
        check = told.get("Healthcheck") or told["Config"].get("Healthcheck")  # podman and docker
        assert check is not None, "the image has no health check; podman needs --format docker"
        kind, *command = check["Test"]
        assert kind == "CMD"
        return list(command)

    def stop(self, name: str) -> str:
        """End a server as supervisors do. Returns what it has logged."""
        self.call("stop", f"--time={STOP_SECONDS}", name)
        assert self.call("inspect", "--format={{.State.ExitCode}}", name).strip() == "0"
        ran = subprocess.run([self.program, "logs", name], capture_output=True, text=True, check=True)
        return ran.stdout + ran.stderr

    def volume(self) -> str:
        name = self._name()
        self.call("volume", "create", name)
        self._volumes.append(name)
        return name

    def close(self) -> None:
        for name in self._containers:
            self.call("rm", "--force", "--volumes", name)
        for name in self._volumes:
            self.call("volume", "rm", name)
        self.call("rmi", "--force", self.image)

    def _name(self) -> str:
        return f"lightning-store-test-{os.getpid()}-{next(self._numbers)}"


def answers(program: str) -> bool:
    """Whether it is there, and its daemon, if it needs one."""
    if shutil.which(program) is None:
        return False
    return subprocess.run([program, "info"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    named = os.environ.get("IMAGE_ENGINE")
    program = named or next(filter(answers, ENGINES), None)
    if program is None:
        pytest.skip("needs docker or podman, and a daemon of docker that answers")
    made = Engine(program, f"lightning-store-grpc:test-{os.getpid()}")
    form = ("--format=docker",) if Path(program).name == "podman" else ()
    made.call("build", *form, *shlex.split(os.environ.get("IMAGE_BUILD_ARGS", "")), f"--tag={made.image}", str(PROJECT))
    yield made
    made.close()


def test_it_has_what_a_server_needs_and_no_more(engine: Engine) -> None:
    seen: dict[str, Any] = json.loads(engine.run("-c", LOOK, options=("--entrypoint=python",)))
    assert (seen["ids"], seen["folder"]) == ([USER, USER, [USER]], DATA)
    assert set(seen["writable"]) <= {DATA, "/tmp", "/var/tmp", "/run/lock", "/var/lock"}
    assert DATA in seen["writable"]
    assert (seen["programs"], seen["pip"], seen["sources"]) == ([], [], False)
    assert {"lightning_store_server", "lightning_store_client", "asyncpg", "uvicorn"} <= set(seen["packages"])
    assert not {"pytest", "hypothesis", "tests", "hatchling"} & set(seen["packages"])


def test_others_may_pass_the_folder_of_the_data(engine: Engine) -> None:
    """podman makes it the home of a user unknown to the image, and the driver of PostgreSQL looks for files there."""
    code = f"import os; print(*(os.access('{DATA}', what) for what in (os.X_OK, os.R_OK, os.W_OK)))"
    assert engine.run("-c", code, options=("--entrypoint=python", "--user=1234:1234")) == "True False False\n"


def test_no_start_compiles_python(engine: Engine) -> None:
    """Nobody can write bytecode in a container, so each start and each health check would compile anew."""
    options = ("--entrypoint=sh", "--tmpfs=/tmp")
    told = engine.run("-c", 'python -v "$(command -v lightning-store-grpc)" serve --check 2>&1', options=options)
    loaded = set(re.findall(r"^# code object from '?(/[^']+\.pyc?)'?$", told, re.MULTILINE))
    assert "the settings are legal" in told
    assert len(loaded) > 100
    assert [path for path in loaded if path.endswith(".py")] == []


def test_a_database_outlives_its_containers(engine: Engine) -> None:
    """As deploy/ runs it, but for TLS: nothing to write to but the volume, no capabilities, tokens."""
    health = engine.health()
    options = (*LOCKED, f"--volume={engine.volume()}:{DATA}")
    told = engine.run("token", "create", "me", "--role=algorithm", "--auth-tokens=tokens.json", options=options)
    settings = ("--database=sqlite:store.db", "--auth-tokens=tokens.json", "--http-port=4318")

    first = engine.serve(*settings, options=options)
    engine.call("exec", first, *health)
    with SyncLightningStoreClient(engine.endpoint(first), token=told.strip()) as client:
        rollout = client.enqueue_rollout({"question": "6 * 7"})
    logged = engine.stop(first)
    assert "SIGTERM: draining" in logged
    assert logged.splitlines()[-1].endswith("stopped")

    second = engine.serve(*settings, options=options)
    with SyncLightningStoreClient(engine.endpoint(second), token=told.strip()) as client:
        assert client.get_rollout_by_id(rollout.rollout_id) == rollout
    engine.stop(second)


def test_the_health_check_fails_without_a_server(engine: Engine) -> None:
    program, *arguments = engine.health()
    assert "NOT_SERVING" in engine.run(*arguments, options=(f"--entrypoint={program}",), exit_code=1)


@pytest.mark.skipif(binaries() is None, reason="needs PostgreSQL")
def test_it_serves_a_postgresql_database(engine: Engine) -> None:
    """As who called deploy/compose-setup.sh, whom the image does not know."""
    database = PostgresServer()
    try:
        database.start()
        options = (*LOCKED, "--user=1234:1234", f"--volume={database.socket_path}:/run/postgresql/.s.PGSQL.5432")
        dsn = f"--database=postgresql://{database.user}@/postgres?host=/run/postgresql"
        name = engine.serve(dsn, "--insecure", options=options)
        engine.call("exec", name, *engine.health())
        with SyncLightningStoreClient(engine.endpoint(name)) as client:
            rollout = client.enqueue_rollout({"question": "6 * 7"})
            assert client.get_rollout_by_id(rollout.rollout_id) == rollout
        engine.stop(name)
    finally:
        database.close()
