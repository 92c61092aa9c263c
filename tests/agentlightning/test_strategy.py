"""GrpcExecutionStrategy: roles, what ends a run, and how runners are stopped."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import signal
import stat
import threading
from datetime import UTC, datetime

import agentlightning as agl
import psutil
import pytest

from lightning_store import PermissionDeniedError
from lightning_store.wire.methods import Role
from lightning_store_agentlightning import (
    AdaptedStore,
    GrpcExecutionStrategy,
    GrpcLightningStore,
    InProcessLightningStore,
)
from lightning_store_server import ServerConfig
from lightning_store_server.tokens import add_token
from tests.agentlightning.forks import in_fork, tell
from tests.processes.programs import free_port

pytestmark = pytest.mark.slow

READY = multiprocessing.get_context("fork").Event()
"""Set by a runner that has got to where the test wants it."""
QUICK = {"graceful_timeout": 0.3, "terminate_timeout": 0.3}


class Messages(logging.Handler):
    """What was logged."""

    def __init__(self):
        super().__init__()
        self.texts = []
        self._news = threading.Condition()

    def emit(self, record):
        with self._news:
            self.texts.append(record.getMessage())
            self._news.notify_all()

    def wait_for(self, part):
        with self._news:
            return self._news.wait_for(lambda: any(part in text for text in self.texts), 30)


@pytest.fixture(autouse=True)
def nobody_ready():
    READY.clear()


async def until_ready():
    assert await asyncio.to_thread(READY.wait, 30)


def strategy(**options):
    return GrpcExecutionStrategy(server_port=free_port(), **{"graceful_timeout": 10.0, **options})


def execute(made, algorithm, runner, store=None):
    made.execute(algorithm, runner, InProcessLightningStore() if store is None else store)


async def until_stopped(store, worker_id, event):
    """A runner that does nothing, and is well behaved."""
    await asyncio.to_thread(event.wait)


async def nothing(store, event):
    """An algorithm."""


# --- What it is told -------------------------------------------------------------------------------------------------


def test_defaults(monkeypatch):
    for name in ("AGL_CURRENT_ROLE", "AGL_SERVER_HOST", "AGL_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    made = GrpcExecutionStrategy()
    assert (made.role, made.server_host, made.server_port, made.n_runners) == ("both", "localhost", 4747, 1)


def test_environment_variables_and_arguments(monkeypatch):
    monkeypatch.setenv("AGL_CURRENT_ROLE", "runner")
    monkeypatch.setenv("AGL_SERVER_HOST", "store.example")
    monkeypatch.setenv("AGL_SERVER_PORT", "5000")
    made = GrpcExecutionStrategy()
    assert (made.role, made.server_host, made.server_port) == ("runner", "store.example", 5000)
    made = GrpcExecutionStrategy("algorithm", "0.0.0.0", 6000)
    assert (made.role, made.server_host, made.server_port) == ("algorithm", "0.0.0.0", 6000)


def test_mistakes(monkeypatch):
    monkeypatch.setenv("AGL_CURRENT_ROLE", "trainer")
    with pytest.raises(ValueError, match="AGL_CURRENT_ROLE.*'trainer'.*algorithm, runner or both"):
        GrpcExecutionStrategy()
    with pytest.raises(ValueError, match="n_runners is 0"):
        GrpcExecutionStrategy("both", n_runners=0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"transport": "pipe"}, "transport is 'pipe'; give tcp or unix"),
        ({"socket_path": "/run/s"}, "socket_path is for transport='unix'"),
        ({"transport": "unix", "role": "runner"}, "role is 'runner': give socket_path"),
        ({"transport": "unix", "server_config": ServerConfig(http_port=0)}, "http_port is on the network"),
    ],
)
def test_mistakes_with_sockets(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        GrpcExecutionStrategy(**options)


def test_a_store_that_it_cannot_serve():
    with pytest.raises(TypeError, match="InMemoryLightningStore.*store=InProcessLightningStore"):
        execute(strategy(), nothing, until_stopped, agl.InMemoryLightningStore())


def test_a_port_that_is_taken(endpoint):
    made = GrpcExecutionStrategy(server_host="127.0.0.1", server_port=int(endpoint.rpartition(":")[2]))
    with pytest.raises(AssertionError, match="OSError.*cannot listen on"):
        in_fork(lambda: execute(made, nothing, until_stopped))


# --- The stores of both sides ----------------------------------------------------------------------------------------


def test_what_the_algorithm_and_the_runners_get():
    async def algorithm(store, event):
        tell((type(store), store.capabilities, os.getpid()))
        await store.enqueue_rollout("task")
        await until_ready()

    async def runner(store, worker_id, event):
        claimed = await store.dequeue_rollout(f"w-{worker_id}")
        while claimed is None and not event.is_set():
            claimed = await store.dequeue_rollout(f"w-{worker_id}")
        if claimed is not None:
            tell((type(store), store.capabilities, os.getpid()))
            READY.set()

    heard = []
    made = strategy(n_runners=2)
    in_fork(
        lambda: execute(made, algorithm, runner), meanwhile=lambda _, there: heard.extend(there.recv() for _ in "ab")
    )
    (served, can, here), (client, can_there, there) = heard
    assert (served, client) == (AdaptedStore, GrpcLightningStore)
    assert can == can_there == {"thread_safe": True, "async_safe": True, "zero_copy": True, "otlp_traces": False}
    assert here != there


def sockets_on_the_network():
    """Of this process that listen."""
    return [one for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN]


def test_a_unix_domain_socket_and_nothing_on_the_network():
    async def algorithm(store, event):
        path = store.store.endpoint.removeprefix("unix://")
        tell((path, stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), sockets_on_the_network()))
        queued = await store.enqueue_rollout("task")
        await until_ready()
        tell([one.status for one in await store.query_rollouts(rollout_id_in=[queued.rollout_id])])

    async def runner(store, worker_id, event):
        while (claimed := await store.dequeue_rollout("w")) is None and not event.is_set():
            pass
        if claimed is not None:
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
            tell(store.endpoint)
            READY.set()

    heard = []
    made = GrpcExecutionStrategy(transport="unix", n_runners=2)
    in_fork(
        lambda: execute(made, algorithm, runner), meanwhile=lambda _, there: heard.extend(there.recv() for _ in "abc")
    )
    (path, mode, on_the_network), endpoint, statuses = heard
    assert (mode, on_the_network, endpoint, statuses) == (0o700, [], f"unix://{path}", ["succeeded"])
    assert not os.path.exists(os.path.dirname(path))


def test_a_unix_domain_socket_for_processes_that_are_started_apart(tmp_path):
    path = tmp_path / "socket"

    async def algorithm(store, event):
        await store.enqueue_rollout("task")
        await until_ready()

    async def runner(store, worker_id, event):
        while await store.dequeue_rollout("w") is None:
            pass
        READY.set()

    def work():
        there = multiprocessing.get_context("fork").Process(
            target=execute, args=(GrpcExecutionStrategy("runner", transport="unix", socket_path=path), nothing, runner)
        )
        there.start()
        execute(GrpcExecutionStrategy("algorithm", transport="unix", socket_path=path), algorithm, nothing)
        there.join()
        return there.exitcode

    assert in_fork(work) == 0


def test_a_unix_domain_socket_does_not_go_with_a_server_elsewhere(endpoint):
    with pytest.raises(TypeError, match="GrpcLightningStore has a server elsewhere"):
        execute(GrpcExecutionStrategy(transport="unix"), nothing, nothing, GrpcLightningStore(endpoint))


def test_the_trainers_store_holds_the_results():
    async def algorithm(store, event):
        await store.enqueue_rollout("task")

    def work():
        store = InProcessLightningStore()
        execute(strategy(), algorithm, until_stopped, store)
        return [rollout.input for rollout in asyncio.run(store.query_rollouts())]

    assert in_fork(work) == ["task"]


def test_what_the_algorithm_hands_on_becomes_a_client():
    async def algorithm(store, event):
        copy = pickle.loads(pickle.dumps(store))
        await copy.enqueue_rollout("by the copy")
        assert [rollout.input for rollout in await store.query_rollouts()] == ["by the copy"]
        with pytest.raises(RuntimeError, match="only the process that made the server"):
            await copy.store.start()

    in_fork(lambda: execute(strategy(), algorithm, until_stopped))


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_addresses(host):
    made = strategy(server_host=host, server_config=ServerConfig(insecure=True))
    in_fork(lambda: execute(made, nothing, until_stopped))


def test_runners_show_the_token_that_the_environment_has(tmp_path, monkeypatch):
    path = str(tmp_path / "tokens.json")
    monkeypatch.setenv("LIGHTNING_STORE_TOKEN", add_token(path, "runners", Role.RUNNER, datetime.now(UTC)))

    async def algorithm(store, event):
        await store.enqueue_rollout("task")
        await until_ready()

    async def runner(store, worker_id, event):
        while (claimed := await store.dequeue_rollout("w")) is None:
            pass
        with pytest.raises(PermissionDeniedError):
            await store.enqueue_rollout("another")
        await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        READY.set()
        await until_stopped(store, worker_id, event)

    in_fork(lambda: execute(strategy(server_config=ServerConfig(auth_tokens=path)), algorithm, runner))


def test_runners_end_their_rollout_before_the_server_stops():
    async def algorithm(store, event):
        await store.enqueue_rollout("task")
        await until_ready()

    async def runner(store, worker_id, event):
        while (claimed := await store.dequeue_rollout("w")) is None:
            pass
        READY.set()
        await until_stopped(store, worker_id, event)
        await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")

    def work():
        store = InProcessLightningStore()
        execute(strategy(), algorithm, runner, store)
        return [rollout.status for rollout in asyncio.run(store.query_rollouts())]

    assert in_fork(work) == ["succeeded"]


# --- Roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_runners", [1, 3])
def test_the_role_of_runners_ends_with_them(endpoint, n_runners):
    """Whatever the trainer's store is: they are clients of host and port."""

    async def runner(store, worker_id, event):
        assert isinstance(store, GrpcLightningStore)
        await store.enqueue_rollout(worker_id)

    made = GrpcExecutionStrategy("runner", "127.0.0.1", int(endpoint.rpartition(":")[2]), n_runners)
    in_fork(lambda: execute(made, nothing, runner, agl.InMemoryLightningStore()))
    rollouts = asyncio.run(GrpcLightningStore(endpoint).query_rollouts())
    assert sorted(rollout.input for rollout in rollouts) == list(range(n_runners))


def test_the_role_of_the_algorithm_has_no_runners():
    port = free_port()

    async def algorithm(store, event):
        await store.enqueue_rollout("task")
        client = GrpcLightningStore(f"localhost:{port}")
        assert (await client.dequeue_rollout("w")).input == "task"
        await client.close()

    async def runner(store, worker_id, event):
        raise AssertionError("there should be none")

    in_fork(lambda: execute(GrpcExecutionStrategy("algorithm", server_port=port), algorithm, runner))


def test_runners_wait_for_the_server():
    """Not only for work: their heartbeats would complain."""
    port = free_port()

    def runners():
        made = GrpcExecutionStrategy("runner", server_port=port)
        execute(made, nothing, runner)

    async def runner(store, worker_id, event):
        await store.enqueue_rollout("there")
        READY.set()

    async def algorithm(store, event):
        await until_ready()

    def both(_, there):
        there.recv()
        in_fork(lambda: execute(GrpcExecutionStrategy("algorithm", server_port=port), algorithm, until_stopped))

    def begun():
        tell("begun")
        runners()

    in_fork(begun, meanwhile=both)


# --- What ends a run -------------------------------------------------------------------------------------------------


def test_an_algorithm_that_fails():
    async def algorithm(store, event):
        raise KeyError("as planned")

    with pytest.raises(AssertionError, match="KeyError: 'as planned'"):
        in_fork(lambda: execute(strategy(n_runners=2), algorithm, until_stopped))


@pytest.mark.parametrize("cooperative", [True, False])
def test_a_runner_that_fails(cooperative):
    """Nobody is left waiting for its results."""

    async def algorithm(store, event):
        await until_stopped(store, 0, event) if cooperative else await asyncio.Event().wait()

    async def runner(store, worker_id, event):
        if worker_id == 1:
            raise KeyError("as planned")
        await until_stopped(store, worker_id, event)

    with pytest.raises(AssertionError, match=r"RuntimeError: runner processes failed: runner-1 \(exit code 1\)"):
        in_fork(lambda: execute(strategy(n_runners=3, graceful_timeout=0.5), algorithm, runner))


def test_a_runner_that_is_killed():
    async def algorithm(store, event):
        await asyncio.Event().wait()

    async def runner(store, worker_id, event):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(AssertionError, match=r"runner-0 \(exit code -9\)"):
        in_fork(lambda: execute(strategy(**QUICK), algorithm, runner))


def test_a_runner_that_is_terminated_has_ended_well():
    async def algorithm(store, event):
        await until_ready()

    async def runner(store, worker_id, event):
        if worker_id == 0:
            READY.set()
            os.kill(os.getpid(), signal.SIGTERM)
        await until_stopped(store, worker_id, event)

    in_fork(lambda: execute(strategy(n_runners=2), algorithm, runner))


def test_an_algorithm_that_goes_on_when_all_runners_have_ended():
    """They may have had their number of rollouts, and it has yet to look at the last one."""
    handler = Messages()

    async def algorithm(store, event):
        assert await asyncio.to_thread(handler.wait_for, "all runners have ended")
        return await store.enqueue_rollout("more")

    async def runner(store, worker_id, event):
        pass

    def work():
        logging.getLogger("lightning_store_agentlightning").addHandler(handler)
        store = InProcessLightningStore()
        execute(strategy(n_runners=2), algorithm, runner, store)
        return len(asyncio.run(store.query_rollouts()))

    assert in_fork(work) == 1


def test_failing_runners_of_a_role_of_runners(endpoint):
    async def runner(store, worker_id, event):
        raise KeyError("as planned")

    made = GrpcExecutionStrategy("runner", "127.0.0.1", int(endpoint.rpartition(":")[2]), 2)
    with pytest.raises(AssertionError, match=r"runner-\d \(exit code 1\)"):
        in_fork(lambda: execute(made, nothing, runner))


@pytest.mark.parametrize("everyone", [True, False])
def test_ctrl_c(everyone):
    """A terminal sends it to all processes, ``kill`` to one."""

    async def algorithm(store, event):
        tell("running")
        await asyncio.Event().wait()

    def interrupt(pid, there):
        there.recv()
        os.killpg(pid, signal.SIGINT) if everyone else os.kill(pid, signal.SIGINT)

    in_fork(lambda: execute(strategy(n_runners=2), algorithm, until_stopped), meanwhile=interrupt)


def test_ctrl_c_in_the_role_of_a_runner(endpoint):
    async def runner(store, worker_id, event):
        tell("running")
        await asyncio.Event().wait()

    def interrupt(pid, there):
        there.recv()
        os.kill(pid, signal.SIGINT)

    made = GrpcExecutionStrategy("runner", "127.0.0.1", int(endpoint.rpartition(":")[2]))
    in_fork(lambda: execute(made, nothing, runner), meanwhile=interrupt)


# --- The four steps --------------------------------------------------------------------------------------------------


async def deaf(store, worker_id, event):
    """Does not look at the event."""
    READY.set()
    await asyncio.Event().wait()


async def busy(store, worker_id, event):
    """Blocks its event loop, as agents do."""
    READY.set()
    while True:
        signal.pause()


async def deaf_to_ctrl_c(store, worker_id, event):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    await deaf(store, worker_id, event)


async def deaf_to_all(store, worker_id, event):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await deaf_to_ctrl_c(store, worker_id, event)


async def well_behaved(store, worker_id, event):
    READY.set()
    await until_stopped(store, worker_id, event)


@pytest.mark.parametrize(
    ("runner", "steps", "code"),
    [
        (well_behaved, [], 0),
        (deaf, ["SIGINT"], 0),
        (busy, ["SIGINT", "SIGTERM"], -15),
        (deaf_to_ctrl_c, ["SIGINT", "SIGTERM"], -15),
        (deaf_to_all, ["SIGINT", "SIGTERM", "SIGKILL"], -9),
    ],
)
def test_runners_are_stopped_in_four_steps(runner, steps, code):
    async def algorithm(store, event):
        await until_ready()

    def work():
        handler = Messages()
        logging.getLogger("lightning_store_agentlightning").addHandler(handler)
        # What a step is not enough for has to wait for its end; what it is enough for is over much sooner.
        graceful, terminate = [(20.0, 20.0), (0.3, 20.0), (0.3, 1.5), (0.3, 0.3)][len(steps)]
        made = strategy(graceful_timeout=graceful, terminate_timeout=terminate, allowed_exit_codes=[code])
        execute(made, algorithm, runner)
        return [step for step in ("SIGINT", "SIGTERM", "SIGKILL") if any(step in text for text in handler.texts)]

    assert in_fork(work) == steps


def test_a_runner_that_had_to_be_killed_has_failed():
    async def algorithm(store, event):
        await until_ready()

    with pytest.raises(AssertionError, match=r"runner-0 \(exit code -9\)"):
        in_fork(lambda: execute(strategy(**QUICK), algorithm, deaf_to_all))


def test_runners_do_not_outlive_their_parent():
    """Not even one that had no time to stop them."""

    async def algorithm(store, event):
        await asyncio.Event().wait()

    async def runner(store, worker_id, event):
        tell("running")
        await until_stopped(store, worker_id, event)
        tell("stopped")

    def kill(pid, there):
        assert [there.recv() for _ in range(3)] == ["running"] * 3
        os.kill(pid, signal.SIGKILL)
        assert [there.recv() for _ in range(3)] == ["stopped"] * 3

    with pytest.raises(AssertionError, match="ended with -9"):
        in_fork(lambda: execute(strategy(n_runners=3), algorithm, runner), meanwhile=kill)
