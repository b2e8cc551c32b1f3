"""What this machine can do at most, against a server in this process that does nothing (L6)."""

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

from pulsar_client.load.plan import Limits, Plan
from pulsar_client.load.quantities import format_duration
from pulsar_client.load.recorder import Recorder
from pulsar_client.load.running import run
from pulsar_client.load.session import Stop

__all__ = ["Calibration", "calibrate"]

_ANY = Limits(lateness=3600.0, loop_lag=3600.0, cpu=1e9)
_SAMPLES = 20_000


class _NullServer(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer."""
        self._transport.write(data)


@dataclass(frozen=True)
class Calibration:
    """The ceiling of this machine; client and server share one core of it.

    Attributes:
        loop: the event loop.
        rate: requests a second with 16 in flight on 16 connections.
        lateness_p50: how late requests are dispatched at 1000/s, in seconds.
        lateness_p99: the same, of the 99th of 100.
        recording: seconds that it takes to record one request with its three durations.
        interrupted: it was stopped before its time.
    """

    loop: str
    rate: float
    lateness_p50: float
    lateness_p99: float
    recording: float
    interrupted: bool

    def text(self) -> str:
        """Say it for people."""
        head = "interrupted: the figures are those of a part\n" if self.interrupted else ""
        return head + (
            f"event loop      {self.loop}\n"
            f"rate            {self.rate:.0f}/s at most, client and null server in one process\n"
            f"dispatch        late by {format_duration(self.lateness_p50)} at p50, "
            f"{format_duration(self.lateness_p99)} at p99, at 1000/s\n"
            f"recording       {format_duration(self.recording)} a request\n"
        )

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return asdict(self)


async def calibrate(duration: float, stop: Stop) -> Calibration:
    """Measure, in twice `duration` seconds and a little more."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_NullServer, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        common: dict[str, Any] = {
            "target": f"tcp://{host}:{port}",
            "protocol": "echo",
            "duration": duration,
            "warmup": min(0.5, duration / 4),
            "connections": 16,
            "limits": _ANY,
        }
        closed = await run(Plan(in_flight=16, **common), stop=stop)
        paced = await run(Plan(rate=1000.0, **common), stop=stop)
    finally:
        server.close()
        await server.wait_closed()
    p50, p99 = paced.histogram("lateness").quantiles((0.5, 0.99))
    return Calibration(
        loop=type(loop).__module__.partition(".")[0],
        rate=closed.rate,
        lateness_p50=p50,
        lateness_p99=p99,
        recording=recording_cost(),
        interrupted=stop.requested,
    )


def recording_cost() -> float:
    """Measure the seconds that it takes to record one request."""
    recorder = Recorder(["request"])
    times = [(k * 1e-4, k * 1e-4 + 1e-6, k * 1e-4 + 2e-6) for k in range(_SAMPLES)]
    began = time.perf_counter()
    for number, (intended, dequeued, sent) in enumerate(times):
        answered = sent + (number * 7919 % 2000) * 1e-6
        recorder.answered(0, (intended, dequeued, sent, answered))
        if number % 500 == 0:
            recorder.fold()
    recorder.fold()
    return (time.perf_counter() - began) / _SAMPLES
