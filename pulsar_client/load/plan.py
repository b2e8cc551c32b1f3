"""What a run does: checked where it enters, so that nothing can be wrong with it later."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.faults import Fault
from pulsar_client.load.scenarios import Scenario, ScenarioFile, load_file
from pulsar_client.load.schedule import Stage, planned
from pulsar_client.load.target import Target
from pulsar_client.load.wire import PROTOCOLS, find_wire

__all__ = ["Limits", "Plan"]

#: Requests that may be in flight at once in an open loop without a cap of its own.
DEFAULT_CAP = 10_000
#: Seconds of a run that has no duration of its own.
DEFAULT_DURATION = 10.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run must keep to; beyond, its numbers say more of the client than of the target.

    Attributes:
        lateness: seconds by which 99 of 100 requests may be dispatched late, in an open loop.
        loop_lag: seconds by which the event loop may be late, at 99 of 100 looks.
        cpu: share of one core that a process may use in an open loop, from 0 to 1.
    """

    lateness: float = 0.01
    loop_lag: float = 0.05
    cpu: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A load test.

    Attributes:
        target: ``tcp://HOST:PORT``, ``tls://…``, ``udp://…`` or ``unix:///PATH``; None if
            scenarios know theirs.
        protocol: a name of :mod:`pulsar_client.load.wire`, or ``module:Consumer``.
        scenario_file: a Python file with scenarios, instead of `scenarios`.
        scenarios: what to call; without any the protocol's own request is made.
        rate: requests a second of an open loop.
        stages: of an open loop, instead of `rate` and `duration`.
        arrivals: ``"constant"`` or ``"poisson"``.
        seed: of everything that is random.
        in_flight: of a closed loop, how many requests are always in flight; of an open one, how
            many may be.
        on_full: what an open loop does with a request that is due at the cap: ``"queue"`` it, or
            ``"drop"`` it.
        duration: seconds, behind the warm-up; None for 10, or for those of the stages.
        warmup: seconds at the start that are in no counter.
        connections: the size of the pool.
        pipeline: requests in flight on one connection.
        timeout: seconds that a request may take once it was dequeued.
        size: bytes of a message of a built-in protocol.
        think: seconds that each caller of a closed loop waits before its next request.
        requests_per_connection: after so many requests a connection is closed; None for never.
        connection_age: after so many seconds a connection is closed; None for never.
        workers: processes; with more than one, each makes its share of the schedule.
        engine: where they run: None for this machine, or ``dask://HOST:PORT``.
        loop_name: the event loop of workers.
        faults: what happens on the way to the target, and when.
        ca_file: PEM file of the authorities for ``tls://``; None for those of the system.
        insecure: do not verify the certificate of ``tls://``.
        interval: seconds of one point of the time line; None for one that fits.
        limits: of the self-check.
        own_target: the user may put load on a target that is not loopback or private.

    Raises:
        ConfigError: a value is wrong; the message names it and what would be right.
    """

    target: str | None = None
    protocol: str | None = None
    scenario_file: str | None = None
    scenarios: Sequence[Scenario] = ()
    rate: float | None = None
    stages: Sequence[Stage] = ()
    arrivals: Literal["constant", "poisson"] = "constant"
    seed: int = 1
    in_flight: int | None = None
    on_full: Literal["queue", "drop"] = "queue"
    duration: float | None = None
    warmup: float = 0.0
    connections: int = 10
    pipeline: int = 1
    timeout: float = 10.0
    size: int = 64
    think: float = 0.0
    requests_per_connection: int | None = None
    connection_age: float | None = None
    workers: int = 1
    engine: str | None = None
    loop_name: Literal["auto", "asyncio", "uvloop"] = "auto"
    faults: Sequence[Fault] = ()
    ca_file: str | None = None
    insecure: bool = False
    interval: float | None = None
    limits: Limits = field(default_factory=Limits)
    own_target: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_schedule()
        self._check_model()
        self._check_target()

    @property
    def open(self) -> bool:
        """Whether requests come by a schedule, whatever the answers do."""
        return self.rate is not None or bool(self.stages)

    @property
    def loop(self) -> str:
        """``"open"`` or ``"closed"``."""
        return "open" if self.open else "closed"

    @property
    def measured(self) -> float:
        """Seconds that are measured."""
        if self.stages:
            return sum(stage.duration for stage in self.stages)
        return DEFAULT_DURATION if self.duration is None else self.duration

    @property
    def schedule(self) -> tuple[Stage, ...]:
        """The stages of an open loop, the warm-up in front at the rate of the first."""
        stages = tuple(self.stages) or (Stage(self.measured, self.rate or 0.0),)
        if self.warmup:
            return (Stage(self.warmup, stages[0].rate), *stages)
        return stages

    @property
    def cap(self) -> int:
        """The most requests in flight in the whole run."""
        return self.in_flight or DEFAULT_CAP

    @property
    def point(self) -> float:
        """Seconds of one point of the time line."""
        if self.interval is not None:
            return self.interval
        if self.workers > 1 or self.engine is not None:
            return 1.0  # one message a second from each
        return min(1.0, max(0.1, (self.measured + self.warmup) / 100))

    def where(self) -> Target | None:
        """The target, taken apart."""
        return None if self.target is None else Target.parse(self.target)

    def what(self) -> ScenarioFile:
        """The scenarios; none of them if the protocol's own request is to be made."""
        if self.scenario_file is not None:
            return load_file(self.scenario_file)
        return ScenarioFile(tuple(self.scenarios))

    def as_json(self) -> dict[str, Any]:
        """Give it for a report, or for another process."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["duration"] = None if self.stages else self.measured
        data["limits"] = vars(self.limits).copy()
        data["stages"] = [[stage.duration, stage.rate, stage.to] for stage in self.stages]
        data["faults"] = [fault.text for fault in self.faults]
        data["scenarios"] = [scenario.label for scenario in self.scenarios]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Plan":
        """Read what :meth:`as_json` gave; functions can't be read, only a file of them.

        Raises:
            ConfigError: it has functions.
        """
        if data["scenarios"]:
            raise ConfigError("several processes need a scenario file instead of functions")
        return cls(
            **{
                **data,
                "limits": Limits(**data["limits"]),
                "stages": [Stage(*stage) for stage in data["stages"]],
                "faults": [Fault.parse(text) for text in data["faults"]],
                "scenarios": (),
            }
        )

    def _check_numbers(self) -> None:
        above_zero = ("duration", "timeout", "interval", "connection_age")
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value!r}, expected seconds above 0")
        if self.interval is not None and self.interval > 1:
            raise ConfigError(f"interval is {self.interval!r}, expected at most 1 second")
        for name in ("warmup", "think"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value!r}, expected seconds, 0 or more")
        counts = (
            "connections",
            "pipeline",
            "workers",
            "size",
            "in_flight",
            "requests_per_connection",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}, expected a whole number from 1")

    def _check_schedule(self) -> None:
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ConfigError(f"rate is {self.rate!r}, expected requests a second above 0")
        if self.rate is not None and self.stages:
            raise ConfigError("rate and stages exclude each other: a stage has its own rate")
        if self.duration is not None and self.stages:
            raise ConfigError("duration and stages exclude each other: a stage has its own time")
        if self.think and self.open:
            raise ConfigError("think is for closed loops: an open one sends by its schedule")
        if self.open and not planned(self.schedule):
            raise ConfigError("the stages plan no request at all: give one a rate above 0")

    def _check_model(self) -> None:
        if not self.open and self.in_flight is None:
            raise ConfigError(
                "give a rate (open loop) or in_flight (closed loop): a load test needs one; "
                "--rate 1000, say"
            )
        if self.engine is not None and not self.engine.startswith("dask://"):
            raise ConfigError(f"engine is {self.engine!r}, expected dask://HOST:PORT")
        if self.scenarios and (self.workers > 1 or self.engine is not None):
            raise ConfigError("several processes need a scenario file instead of functions")
        if self.arrivals not in ("constant", "poisson"):
            raise ConfigError(f"arrivals is {self.arrivals!r}, expected 'constant' or 'poisson'")
        if self.on_full not in ("queue", "drop"):
            raise ConfigError(f"on_full is {self.on_full!r}, expected 'queue' or 'drop'")
        if self.in_flight is not None and self.in_flight < self.workers:
            raise ConfigError(
                f"in_flight is {self.in_flight} for {self.workers} workers, "
                "expected at least one for each"
            )

    def _check_target(self) -> None:
        if self.scenarios and self.scenario_file:
            raise ConfigError("scenarios and scenario_file exclude each other")
        target = self.where()
        if self.pipeline > 1 and (target is None or target.scheme == "udp"):
            raise ConfigError(f"pipeline is {self.pipeline}, but only streams can be pipelined")
        if self.faults and (target is None or target.scheme == "udp" or self.protocol is None):
            raise ConfigError("faults need a protocol and a target over TCP, TLS or a unix socket")
        for fault in self.faults:
            if fault.at >= self.measured:
                raise ConfigError(
                    f"fault {fault.text!r} would begin after the end: the run has "
                    f"{self.measured:g} s"
                )
        if (self.ca_file or self.insecure) and (target is None or target.scheme != "tls"):
            raise ConfigError("ca_file and insecure are for targets over TLS: tls://HOST:PORT")
        if self.protocol is not None:
            find_wire(self.protocol)
            if target is None:
                raise ConfigError(f"protocol {self.protocol!r} needs a target")
        elif not (self.scenarios or self.scenario_file):
            raise ConfigError(
                "give a protocol or scenarios: without them there is no request; "
                f"--protocol {', '.join(PROTOCOLS)} or module:Consumer"
            )
        if target is not None and not self.own_target:
            foreign = target.foreign_address()
            if foreign is not None:
                raise ConfigError(
                    f"target {target.url} is at {foreign}, which is neither this machine nor a "
                    "private network; if it is yours to load, say --i-own-this-target"
                )
