"""A message there and back over one gRPC stream, with nothing of the store: what one call costs at the least.

The kinds of stream and server are those that the store uses: a stream that a thread reads for an event loop, and an
asyncio server. Prints the median in milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio

from lightning_store_client.grpc_internals import MessageStream

METHOD: Final = "/benchmarks.Bare/Echo"
MESSAGE: Final = bytes(150)
WARM_UP: Final = 300
MESSAGES: Final = 2_000


async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def serve() -> None:
    """Until killed. Prints the port."""
    server = grpc.aio.server()
    service, method = METHOD.strip("/").split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.stream_stream_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def milliseconds(port: int) -> list[float]:
    """Of each message, one after another."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    may_send = threading.Semaphore()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = MessageStream(channel, METHOD)

        def read() -> None:
            with contextlib.suppress(grpc.RpcError):  # that it was cancelled
                stream.run(lambda reply: loop.call_soon_threadsafe(arrived.put_nowait, reply), may_send.release)

        reading = threading.Thread(target=read)
        reading.start()
        taken: list[float] = []
        for _ in range(WARM_UP + MESSAGES):
            start = time.perf_counter()
            may_send.acquire()
            stream.send(MESSAGE)
            await arrived.get()
            taken.append((time.perf_counter() - start) * 1e3)
        stream.cancel()
        await asyncio.to_thread(reading.join)
    return taken[WARM_UP:]


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
        return
    with subprocess.Popen([sys.executable, "-m", "benchmarks.bare", "serve"], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            print(statistics.median(asyncio.run(milliseconds(int(server.stdout.readline())))))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
