"""A message there and back over one gRPC stream, with nothing of the store: what one call costs at the least.

The kinds of channel and server are those that the store uses: a synchronous channel bridged to asyncio, whose requests
and replies pass through threads, and an asyncio server. Prints the median in milliseconds.
"""

from __future__ import annotations

import asyncio
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio

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
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        replies = channel.stream_stream(METHOD, None, None)(iter(requests.get, None))

        def read() -> None:
            for reply in replies:
                loop.call_soon_threadsafe(arrived.put_nowait, reply)

        reading = threading.Thread(target=read)
        reading.start()
        taken: list[float] = []
        for _ in range(WARM_UP + MESSAGES):
            start = time.perf_counter()
            requests.put(MESSAGE)
            await arrived.get()
            taken.append((time.perf_counter() - start) * 1e3)
        requests.put(None)
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
