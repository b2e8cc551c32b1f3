"""The server: adds up counters, keeps gauges, and the number, sum and extremes of timings."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pulsar_client import DatagramProtocol, DatagramServer, ProtocolConsumer, ProtocolError

#: Names that are kept; whoever sends more must not fill the memory.
MAX_NAMES = 10_000


@dataclass
class Timing:
    """What is known of the times of one name, in milliseconds."""

    number: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.number += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)


@dataclass
class Metrics:
    """What was received so far."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    #: Lines that were no metrics, or of a name too many.
    refused: int = 0

    def add(self, line: str) -> None:
        """Take one line, ``name:value|kind`` or ``name:value|kind|@rate``.

        Raises:
            ValueError: it is none.
        """
        name, colon, rest = line.rpartition(":")
        value_text, _, kind = rest.partition("|")
        kind, _, rate_text = kind.partition("|@")
        value, rate = float(value_text), float(rate_text or 1.0)
        if not (name and colon and math.isfinite(value) and 0 < rate <= 1):
            raise ValueError(line)
        kinds: dict[str, dict[str, Any]] = {
            "c": self.counters,
            "g": self.gauges,
            "ms": self.timings,
        }
        known = kinds.get(kind)
        if known is None or (name not in known and len(known) >= MAX_NAMES):
            raise ValueError(line)
        if kind == "c":
            known[name] = known.get(name, 0.0) + value / rate
        elif kind == "g":
            known[name] = value
        else:
            known.setdefault(name, Timing()).add(value)


class StatsdProtocol(ProtocolConsumer):
    """One datagram of metrics; there is no answer."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self.metrics = metrics

    def data_received(self, data: bytes) -> None:
        """Take the lines that are metrics; a datagram without any is counted as malformed."""
        good = 0
        for line in data.decode("utf-8", "replace").splitlines():
            try:
                self.metrics.add(line)
            except ValueError:
                self.metrics.refused += 1
            else:
                good += 1
        if not good:
            raise ProtocolError(f"no metric in {data[:40]!r}")
        self.finished()


def server(metrics: Metrics, address: Any = ("127.0.0.1", 0), **kw: Any) -> DatagramServer:
    """A server that adds to ``metrics``.

    Args:
        metrics: where to.
        address: where to listen; a free loopback port by default.
        **kw: see :class:`DatagramServer`.
    """
    factory = partial(DatagramProtocol, consumer_factory=partial(StatsdProtocol, metrics))
    return DatagramServer(factory, address=address, **kw)
