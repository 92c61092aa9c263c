"""GrpcExecutionStrategy: Agent Lightning's algorithm and runners as processes that share our store over gRPC, on the
network or on a Unix domain socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, Final, Literal, cast, get_args

import agentlightning as agl
from agentlightning.env_var import LightningEnvVar, resolve_int_env_var, resolve_str_env_var
from agentlightning.execution.base import AlgorithmBundle, ExecutionStrategy, RunnerBundle
from agentlightning.execution.events import ExecutionEvent

from lightning_store_agentlightning.adapter import AdaptedStore
from lightning_store_agentlightning.processes import RunnerProcesses
from lightning_store_agentlightning.remote import GrpcLightningStore
from lightning_store_server import LightningStoreServer, ServerConfig
from lightning_store_server.handle import WILDCARDS

logger = logging.getLogger("lightning_store_agentlightning")

Role = Literal["algorithm", "runner", "both"]
Transport = Literal["tcp", "unix"]

PROBE_SECONDS: Final = 0.1
"""Between two looks at whether the server is there."""


class GrpcExecutionStrategy(ExecutionStrategy):
    """Runs the algorithm, the runners, or both, as ``role`` says.

    * ``"algorithm"``: serve the trainer's store over gRPC from this process, and run the algorithm on it.
    * ``"runner"``: run runners, each as a client of that server.
    * ``"both"``: fork the runners first, then serve and run the algorithm here. (A process that serves is better not
      forked any more.)

    The trainer's store is an :class:`InProcessLightningStore`, or another :class:`AdaptedStore`, which is served; or a
    :class:`GrpcLightningStore`: then its server is used by everyone, and none is started.

    When the algorithm has ended, or anything has failed, runners are stopped in four steps: the stop event, SIGINT,
    SIGTERM, SIGKILL. They get to finish what they work on, and to report it, before the server stops. A runner that
    fails ends the run: RuntimeError. Ctrl+C ends it quietly.

    :param role: None takes the variable ``AGL_CURRENT_ROLE``, else ``"both"``
    :param server_host: address to listen on, and for runners to connect to; None takes ``AGL_SERVER_HOST``, else
        ``localhost``. One beyond loopback asks for tokens in ``server_config``, or for its ``insecure=True``
    :param server_port: None takes ``AGL_SERVER_PORT``, else 4747
    :param n_runners: runner processes on this machine
    :param graceful_timeout: seconds between the stop event and SIGINT
    :param terminate_timeout: seconds between each two further steps
    :param allowed_exit_codes: of runners that ended well
    :param dequeue_wait: seconds that a runner's request for work waits for it, see :class:`GrpcLightningStore`
    :param transport: ``"tcp"``, or ``"unix"``: the server listens on a Unix domain socket and nowhere else, for
        processes of this machine and user. Host and port do not count then
    :param socket_path: the path of that socket, by which processes that are started apart find each other. None, for
        the role ``"both"`` only, is one in a new directory that no other user can open, and that is removed in the end
    :param server_config: all other settings of the server. Runners take their token and what they need for its TLS from
        the environment, see :class:`lightning_store_client.LightningStoreClient`
    """

    alias = "grpc"

    def __init__(
        self,
        role: Role | None = None,
        server_host: str | None = None,
        server_port: int | None = None,
        n_runners: int = 1,
        graceful_timeout: float = 10.0,
        terminate_timeout: float = 10.0,
        allowed_exit_codes: Iterable[int] = (0, -15),
        *,
        dequeue_wait: float = 1.0,
        transport: Transport = "tcp",
        socket_path: str | os.PathLike[str] | None = None,
        server_config: ServerConfig | None = None,
    ) -> None:
        if server_host is None:
            server_host = resolve_str_env_var(LightningEnvVar.AGL_SERVER_HOST, fallback="localhost")
        if server_port is None:
            server_port = resolve_int_env_var(LightningEnvVar.AGL_SERVER_PORT, fallback=4747)
        if n_runners < 1:
            raise ValueError(f"n_runners is {n_runners}; give 1 or more")
        self.role: Role = _checked_role(role or resolve_str_env_var(LightningEnvVar.AGL_CURRENT_ROLE, fallback="both"))
        self.server_host = server_host
        self.server_port = server_port
        self.n_runners = n_runners
        self.graceful_timeout = graceful_timeout
        self.terminate_timeout = terminate_timeout
        self.allowed_exit_codes = tuple(allowed_exit_codes)
        self.dequeue_wait = dequeue_wait
        self.server_config = server_config
        self.transport: Transport = transport
        self.socket_path = None if socket_path is None else os.path.abspath(socket_path)
        self._check_transport()

    def _check_transport(self) -> None:
        if self.transport not in get_args(Transport):
            raise ValueError(f"transport is {self.transport!r}; give tcp or unix")
        if self.transport == "tcp":
            if self.socket_path is not None:
                raise ValueError("socket_path is for transport='unix'; give that too, or no path")
            return
        if self.socket_path is None and self.role != "both":
            raise ValueError(f"role is {self.role!r}: give socket_path, by which the other processes find the socket")
        if self.server_config is not None and self.server_config.http_port is not None:
            raise ValueError(
                "server_config.http_port is on the network, where transport='unix' has nothing; leave it out"
            )

    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: agl.LightningStore) -> None:
        """Run until the algorithm ends, or, for the role ``"runner"``, until the runners do. TypeError: see above."""
        if self.transport == "unix" and isinstance(store, GrpcLightningStore):
            raise TypeError(
                "transport='unix' serves a store of this process, and a GrpcLightningStore has a server elsewhere; "
                "give the Trainer store=InProcessLightningStore(), or leave transport out"
            )
        if self.transport == "tcp" or self.socket_path is not None:
            self._execute(algorithm, runner, store)
            return
        directory = tempfile.mkdtemp(prefix="lightning-store-")
        self.socket_path = os.path.join(directory, "socket")
        try:
            self._execute(algorithm, runner, store)
        finally:
            self.socket_path = None
            shutil.rmtree(directory, ignore_errors=True)

    def _execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: agl.LightningStore) -> None:
        processes = RunnerProcesses(
            graceful_timeout=self.graceful_timeout,
            terminate_timeout=self.terminate_timeout,
            allowed_exit_codes=self.allowed_exit_codes,
        )
        server = None if self.role == "runner" else self._server(store)

        async def run_runner(number: int, stop_event: ExecutionEvent) -> None:
            await self._run_runner(runner, number, store, stop_event)

        try:
            if self.role == "runner" and self.n_runners == 1:
                asyncio.run(run_runner(0, processes.stop_event))
                return
            if self.role != "algorithm":
                processes.start(self.n_runners, run_runner)
            if self.role == "runner":
                processes.wait()
            else:
                asyncio.run(self._run_algorithm(algorithm, store, server, processes))
        except KeyboardInterrupt:
            logger.warning("interrupted")
        finally:
            processes.shut_down()
        processes.check()

    # --- The runner's side -------------------------------------------------------------------------------------------

    async def _run_runner(
        self, runner: RunnerBundle, number: int, store: agl.LightningStore, stop_event: ExecutionEvent
    ) -> None:
        async with self._client(store) as client:
            await self._until_serving(client, stop_event)
            await runner(client, number, stop_event)

    @contextlib.asynccontextmanager
    async def _client(self, store: agl.LightningStore) -> AsyncIterator[GrpcLightningStore]:
        """The trainer's store if it is a client; else a client of the algorithm's server, closed in the end."""
        if isinstance(store, GrpcLightningStore):
            yield store
            return
        client = GrpcLightningStore(self._endpoint(), dequeue_wait=self.dequeue_wait)
        try:
            yield client
        finally:
            await client.close()

    async def _until_serving(self, client: GrpcLightningStore, stop_event: ExecutionEvent) -> None:
        """Runners may be there before the server is; their heartbeats need not complain about it."""
        for probes in itertools.count():
            if stop_event.is_set() or await client.healthy():
                return
            logger.log(logging.DEBUG if probes else logging.INFO, "waiting for the server at %s", client.endpoint)
            await asyncio.sleep(PROBE_SECONDS)

    def _endpoint(self) -> str:
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        host = WILDCARDS.get(self.server_host, self.server_host)
        return f"[{host}]:{self.server_port}" if ":" in host else f"{host}:{self.server_port}"

    # --- The algorithm's side ----------------------------------------------------------------------------------------

    def _server(self, store: agl.LightningStore) -> LightningStoreServer | None:
        """The server of ``store``, not yet started; None if it has one elsewhere."""
        if isinstance(store, GrpcLightningStore):
            return None
        if isinstance(store, AdaptedStore):
            return LightningStoreServer(store.store, self.server_host, self.server_port, config=self._config())
        raise TypeError(
            f"GrpcExecutionStrategy cannot serve a {type(store).__name__}; give the Trainer "
            "store=InProcessLightningStore(), or store=GrpcLightningStore(…) for a server that runs already"
        )

    def _config(self) -> ServerConfig | None:
        if self.socket_path is None:
            return self.server_config
        return dataclasses.replace(self.server_config or ServerConfig(), unix_path=self.socket_path)

    async def _run_algorithm(
        self,
        algorithm: AlgorithmBundle,
        store: agl.LightningStore,
        server: LightningStoreServer | None,
        processes: RunnerProcesses,
    ) -> None:
        async with server if server is not None else contextlib.nullcontext():
            # What the algorithm hands to processes of its own becomes a client there.
            served = store if server is None else AdaptedStore(server)
            try:
                await self._unless_a_runner_fails(algorithm(served, processes.stop_event), processes)
            finally:
                # Before the server stops: runners report what they are working on.
                await processes.ask_to_stop()

    async def _unless_a_runner_fails(self, work: Coroutine[Any, Any, None], processes: RunnerProcesses) -> None:
        """Run ``work``; once a runner has failed it is asked to stop, and cancelled if it does not."""
        task = asyncio.create_task(work)
        failure = asyncio.create_task(processes.until_failure())
        try:
            await asyncio.wait({task, failure}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                logger.error("stopping the algorithm, since there failed %s", ", ".join(processes.failures()))
                processes.stop_event.set()
                await asyncio.wait({task}, timeout=self.graceful_timeout)
        finally:
            stopped = task.cancel()
            failure.cancel()
            await asyncio.wait({task, failure})
        if not (stopped and task.cancelled()):
            task.result()


def _checked_role(role: str) -> Role:
    for known in get_args(Role):
        if role == known:
            return cast(Role, known)
    raise ValueError(f"role (or {LightningEnvVar.AGL_CURRENT_ROLE.value}) is {role!r}; give algorithm, runner or both")
