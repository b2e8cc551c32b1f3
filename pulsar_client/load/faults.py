"""Faults on the time line of a run: what happens to the bytes between client and target, and when.

A :class:`~pulsar_client.testing.FaultProxy` in the client's process does it; each fault leaves a
mark.  A fault is written as ``stall@4s+1s``: what, when after the warm-up, and for how long.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pulsar_client.exceptions import ConfigError
from pulsar_client.load import quantities
from pulsar_client.testing import FaultProxy

__all__ = ["Fault", "play"]

_FORM = re.compile(r"(?P<kind>[a-z]+)(?:=(?P<amount>[^@]+))?@(?P<at>[^+]+)(?:\+(?P<duration>.+))?")
_LASTING = ("stall", "latency", "bandwidth")


@dataclass(frozen=True)
class Fault:
    """One fault; made by :meth:`parse`.

    Attributes:
        text: as it was given.
        kind: ``stall``, ``reset``, ``latency`` or ``bandwidth``.
        at: seconds after the warm-up.
        duration: seconds that it lasts; 0.0 for a reset.
        amount: seconds of latency each way, or bytes a second of each connection.
    """

    text: str
    kind: str
    at: float
    duration: float
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read a fault.

        ``stall@4s+1s`` lets no byte pass, ``reset@6s`` resets every connection,
        ``latency=20ms@8s+2s`` delays bytes each way, ``bandwidth=64KiB@10s+2s`` limits each
        connection to so many bytes a second.

        Raises:
            ConfigError: it has another form.
        """
        found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None or found["kind"] not in (*_LASTING, "reset"):
            raise ConfigError(
                f"fault {text!r} must be like stall@4s+1s, reset@6s, latency=20ms@8s+2s or "
                "bandwidth=64KiB@10s+2s"
            )
        kind, amount = found["kind"], found["amount"]
        if (kind in _LASTING) != (found["duration"] is not None):
            wanted = "a duration: +1s" if kind in _LASTING else "no duration"
            raise ConfigError(f"fault {text!r} must have {wanted}")
        if (kind in ("latency", "bandwidth")) != (amount is not None):
            wanted = f"an amount: {kind}=…" if amount is None else "no amount"
            raise ConfigError(f"fault {text!r} must have {wanted}")
        try:
            value = 0.0
            if kind == "latency":
                value = quantities.duration(amount)
            elif kind == "bandwidth":
                value = float(quantities.size(amount))
                if value < 1:
                    raise ConfigError("0 bytes a second is a stall")
            duration = quantities.duration(found["duration"]) if found["duration"] else 0.0
            return cls(text.strip(), kind, quantities.duration(found["at"]), duration, value)
        except ConfigError as exc:
            raise ConfigError(f"fault {text!r}: {exc}") from exc

    def begin(self, proxy: FaultProxy) -> None:
        """Let it happen."""
        if self.kind == "stall":
            proxy.stall()
        elif self.kind == "reset":
            proxy.reset()
        elif self.kind == "latency":
            proxy.latency = self.amount
        else:
            proxy.rate = self.amount

    def end(self, proxy: FaultProxy) -> None:
        """Take it back."""
        if self.kind == "stall":
            proxy.resume()
        elif self.kind == "latency":
            proxy.latency = 0.0
        elif self.kind == "bandwidth":
            proxy.rate = None


async def play(
    faults: Iterable[Fault],
    proxy: FaultProxy,
    *,
    zero: float,
    clock: Callable[[], float],
    mark: Callable[[str], None],
) -> None:
    """Let faults happen in their time, each with a mark at its begin and its end.

    Args:
        faults: in any order.
        proxy: between client and target.
        zero: the moment of the clock that they count from.
        clock: gives the moment.
        mark: puts a mark on the time line.
    """
    events: list[tuple[float, str, Callable[[FaultProxy], None]]] = []
    for fault in faults:
        what = fault.text.partition("@")[0]
        events.append((fault.at, what, fault.begin))
        if fault.duration:
            events.append((fault.at + fault.duration, f"end of {what}", fault.end))
    for at, text, action in sorted(events, key=lambda event: event[0]):
        if (wait := zero + at - clock()) > 0:
            await asyncio.sleep(wait)
        action(proxy)
        mark(text)
