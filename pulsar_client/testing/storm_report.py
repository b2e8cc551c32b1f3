"""What a storm has seen: the counts, the replies that went astray, and the error that has both."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Interruption", "StormFailure", "StormReport"]


class Interruption(Exception):
    """What `storm` raises at random in the middle of an exchange."""


class StormFailure(AssertionError):
    """A storm has found something that must not be.

    Attributes:
        report: what happened until then.
    """

    def __init__(self, message: str, report: "StormReport") -> None:
        super().__init__(f"{message}\n{report!r}")
        self.report = report


@dataclass(repr=False)
class StormReport:
    """What came of the exchanges of a storm.

    ``ok + cancelled + timed_out + interrupted + failures == exchanges``.
    """

    #: Of the random choices.
    seed: int
    #: Exchanges that have ended.
    exchanges: int = 0
    #: Those that got a reply.
    ok: int = 0
    #: Those that were cancelled.
    cancelled: int = 0
    #: Those that ran into a time-out of the storm.
    timed_out: int = 0
    #: Those that ended with an `Interruption`.
    interrupted: int = 0
    #: Those that ended with an exception of the client, by the name of its class.
    failed: Counter[str] = field(default_factory=Counter)
    #: How many replies were not the caller's own.
    foreign: int = 0
    #: The first few of them: the id of the request, and the other id in the reply, or the reply.
    mixed_up: list[tuple[bytes, Any]] = field(default_factory=list)
    #: How many cancellations and time-outs came out as something else.
    swallowed: int = 0
    #: Faults called, by name.
    faults: Counter[str] = field(default_factory=Counter)
    #: How long it took, on the loop's clock.
    seconds: float = 0.0

    @property
    def failures(self) -> int:
        """How many exchanges ended with an exception of the client."""
        return self.failed.total()

    def __repr__(self) -> str:
        parts = [
            f"{self.ok} ok",
            f"{self.cancelled} cancelled",
            f"{self.timed_out} timed out",
            f"{self.interrupted} interrupted",
            _counts(self.failures, "failed", self.failed),
            _counts(self.faults.total(), "faults", self.faults),
            f"{self.foreign} foreign replies",
        ]
        return (
            f"<Storm {self.seed}: {self.exchanges} exchanges in {self.seconds:.3g} s:"
            f" {', '.join(parts)}>"
        )


def _counts(total: int, what: str, counts: Counter[str]) -> str:
    causes = ", ".join(f"{name} {number}" for name, number in counts.most_common())
    return f"{total} {what} ({causes})" if causes else f"{total} {what}"
