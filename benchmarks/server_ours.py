"""The library's server for the comparison: ``python -m benchmarks.server_ours --bind …``.

It does of HTTP/1.1 what the measurements need: GET without a body, on connections that are kept.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.server_app import block, hang, slow, started
from pulsar_client import DelimitedDecoder, ProtocolConsumer, SocketServer

__all__ = ["HttpServer", "PidConsumer"]


class PidConsumer(ProtocolConsumer):
    """One request; the answer is the process id."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = DelimitedDecoder(b"\r\n\r\n", max_size=10_000)

    def data_received(self, data: bytes) -> bytes | None:
        head, rest = self.decoder.decode(data)
        if head is not None:
            path = head.split(b" ", 2)[1]
            if path == b"/slow":
                self.create_task(self.later(slow))
            elif path == b"/hang":
                self.create_task(self.later(hang))
            elif path == b"/block":
                block()
            else:
                self.answer()
        return rest

    async def later(self, wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        self.answer()

    def answer(self) -> None:
        body = b"%d" % os.getpid()
        self.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        self.finished()


class HttpServer(SocketServer):
    """Says when a worker has started, as the ASGI application does."""

    callable = PidConsumer

    async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
        started()
        await super().worker_start(worker, exc)


if __name__ == "__main__":
    HttpServer(name="compared", log_level="warning").start()
