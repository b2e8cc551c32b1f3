"""What the storms share: a server that can be restarted, behind a proxy that misbehaves.

Not a test module.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from examples.echo import Echo
from examples.echo.manage import server
from pulsar_client import Pool, PoolUnavailable, TcpServer
from pulsar_client.testing import FaultProxy


class Weather:
    """An echo server, its proxy, and what can befall them."""

    def __init__(self, running: TcpServer, seed: int) -> None:
        self.server = running
        host, port = running.address[:2]
        self.address = (host, port)
        self.proxy = FaultProxy(self.address)
        self.chances = random.Random(f"{seed} weather")
        self.timers: list[asyncio.TimerHandle] = []

    async def restart(self) -> None:
        """The server goes, with its connections, and comes back on its port."""
        self.proxy.close_all()
        await self.server.close()
        self.server = server(self.address)
        await self.server.start_serving()

    def refuse_for_a_moment(self) -> None:
        """Nobody listens, and all connections are lost."""
        self.proxy.refuse()
        self.proxy.reset()
        self._later(0.002, self.proxy.accept)

    def cut_a_reply(self) -> None:
        """The next connection that gets so far ends in the middle of a reply."""
        self.proxy.cut_after(self.chances.randrange(200), "to_client", once=True)

    def cut_a_request(self) -> None:
        """The same with a request, and a reset."""
        self.proxy.cut_after(self.chances.randrange(200), "to_server", once=True, reset=True)

    def lag(self) -> None:
        """Replies take their time; those of abandoned requests come late."""
        self.proxy.latency = 0.001

    def hurry(self) -> None:
        """The network is fast again."""
        self.proxy.latency = 0.0

    def stall_replies(self) -> None:
        """Nothing comes back for a while."""
        self.proxy.stall("to_client")
        self._later(0.005, self.proxy.resume)

    def calm(self) -> None:
        """Everything works."""
        for timer in self.timers:
            timer.cancel()
        self.proxy.accept()
        self.proxy.resume()
        self.proxy.latency = 0.0
        self.proxy.cut_after(None, "to_client")
        self.proxy.cut_after(None, "to_server")

    def _later(self, seconds: float, end: Callable[[], object]) -> None:
        self.timers.append(asyncio.get_running_loop().call_later(seconds, end))

    @property
    def faults(self) -> list[Callable[[], Any]]:
        """All of them; what slows down has its end in the list twice."""
        proxy = self.proxy
        return [
            *(proxy.reset, proxy.close_all, self.cut_a_reply, self.cut_a_request, self.restart),
            *(self.lag, self.hurry, self.hurry, self.stall_replies, self.refuse_for_a_moment),
        ]


@contextlib.asynccontextmanager
async def echo_weather(seed: int, pool_size: int) -> AsyncIterator[tuple[Weather, Echo]]:
    """Run a server, a proxy and a client of both."""
    running = server()
    await running.start_serving()
    weather = Weather(running, seed)
    try:
        async with weather.proxy:
            echo = Echo(weather.proxy.address, pool_size, timeout=10.0)
            try:
                yield weather, echo
            finally:
                weather.calm()
                echo.close()
                await echo.wait_closed()
    finally:
        await weather.server.close()


async def recovered(pool: Pool) -> None:
    """Wait until a pool leases again.

    Dials that failed last in the storm let it leave the target alone for a moment (I26): 2 s at
    most (I22), and the rest is for a machine that is busy.
    """
    async with asyncio.timeout(10.0):
        while True:
            try:
                async with pool.connect():
                    return
            except PoolUnavailable:
                await asyncio.sleep(0.01)
