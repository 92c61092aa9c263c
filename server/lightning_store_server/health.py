"""The standard health service, with watchers that a draining server does not have to wait for."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import health, health_pb2

from lightning_store.errors import InvalidArgumentError, StoreError
from lightning_store_server.admission import Lane
from lightning_store_server.interceptors import abort, peer_of

SERVICE_CHARS_MAX: Final = 1000
WATCH: Final = f"/{health.SERVICE_NAME}/Watch"
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health.aio.HealthServicer):  # type: ignore[name-defined, misc]  # missing in its stub
    """Ends every Watch once it has told that the server is going; the library's own would hold on to it."""

    def __init__(self, watches: Lane) -> None:
        super().__init__()
        self._watches = watches
        self._draining = False
        self._asked_for: Counter[str] = Counter()
        """The services that are watched, known here or not."""

    async def drain(self) -> None:
        """Tell every prober and watcher NOT_SERVING, from now on and for good."""
        self._draining = True
        for service in list(self._asked_for):
            await self.set(service, NOT_SERVING)
        await self.enter_graceful_shutdown()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            if len(request.service) > SERVICE_CHARS_MAX:
                message = f"service has more than {SERVICE_CHARS_MAX} characters"
                raise InvalidArgumentError(message, field="service")
            slot = self._watches.enter(0, peer_of(context))
        except StoreError as error:
            await abort(WATCH, context, error)
        with slot:
            await self._watch(request, context)

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._asked_for[request.service] += 1
        try:
            await super().Watch(request, _Context(self, context))
        except _Drained:
            return
        finally:
            self._asked_for[request.service] -= 1
            if not self._asked_for[request.service]:
                del self._asked_for[request.service]

    def told(self, response: health_pb2.HealthCheckResponse) -> None:
        """A watcher has got ``response``; if that was the last one, it is let go."""
        if self._draining and response.status == NOT_SERVING:
            raise _Drained


class _Drained(Exception):
    """Leaves the endless loop of a Watch."""


class _Context:
    """The part of a context that a Watch uses."""

    def __init__(self, servicer: HealthServicer, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._servicer = servicer
        self._context = context

    async def write(self, response: health_pb2.HealthCheckResponse) -> None:
        await self._context.write(response)
        self._servicer.told(response)
