"""Tools to test protocols, clients and pools, also your own.

- `memory_pair`, `MemoryTransport`, `Link`: two protocols joined without sockets, with bytes that
  come late, in pieces, not at all, or up to a point.
- `VirtualClockLoop`, `Deadlock`: a loop in which time-outs take no time, and a test that would
  hang fails instead.
- `FaultProxy`, `Direction`: a real TCP proxy that stalls, cuts, resets, refuses, is slow or deaf.
- `UdpFaultProxy`: a real UDP proxy that loses, doubles, delays and reorders datagrams.
- `Gate`, `gate_matrix`: the ways in which an awaited step can end, and all combinations of them.
- `explore_cancellation`, `Exploration`, `CancellationFailure`: a scenario, cancelled at each point
  at which it can be.
- `storm`, `StormReport`, `StormFailure`, `Interruption`: many exchanges, disturbed at random; does
  each caller get its own reply?
- `conservation`, `settled`: is every slot of a pool accounted for, and is it at rest?
- `conformance`, `Conformance`, `ConformanceFailure`: does a pool of your connections do what every
  pool must?

A protocol that counts lines must not depend on how the bytes are cut up::

    class Lines(asyncio.Protocol):
        count = 0

        def data_received(self, data: bytes) -> None:
            self.count += data.count(b"\\n")

    async def test_lines() -> None:
        lines = Lines()
        client, _ = memory_pair(asyncio.Protocol(), lines, to_server=Link(split=1, delay=60.0))
        client.write(b"one\\ntwo\\n")
        await asyncio.sleep(61.0)
        assert lines.count == 2

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(test_lines())  # a minute passes at once

Nothing of the library but its exceptions is needed here, and nothing imports it in return.
"""

from pulsar_client.testing.conformance import Conformance, ConformanceFailure, conformance
from pulsar_client.testing.conservation import conservation, settled
from pulsar_client.testing.explorer import (
    CancellationFailure,
    Exploration,
    explore_cancellation,
)
from pulsar_client.testing.fault_proxy import Direction, FaultProxy
from pulsar_client.testing.gates import Gate, gate_matrix
from pulsar_client.testing.link import Link
from pulsar_client.testing.memory_transport import MemoryTransport, memory_pair
from pulsar_client.testing.storm import storm
from pulsar_client.testing.storm_report import Interruption, StormFailure, StormReport
from pulsar_client.testing.udp_fault_proxy import UdpFaultProxy
from pulsar_client.testing.virtual_clock import Deadlock, VirtualClockLoop

__all__ = [
    "CancellationFailure",
    "Conformance",
    "ConformanceFailure",
    "Deadlock",
    "Direction",
    "Exploration",
    "FaultProxy",
    "Gate",
    "Interruption",
    "Link",
    "MemoryTransport",
    "StormFailure",
    "StormReport",
    "UdpFaultProxy",
    "VirtualClockLoop",
    "conformance",
    "conservation",
    "explore_cancellation",
    "gate_matrix",
    "memory_pair",
    "settled",
    "storm",
]
