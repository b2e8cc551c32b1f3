"""What one request is: a scenario, and the context it is called with.

A scenario is a coroutine function that makes one request with any client::

    @load.scenario(weight=9, label="get")
    async def get(ctx):
        async with ctx.connect() as connection:
            await connection.request(b"hello")

This module knows no run: who calls scenarios, and when, is the runner's business.
"""

import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, TypeVar

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.faults import Fault
from pulsar_client.load.target import Target

__all__ = ["Context", "Scenario", "ScenarioFile", "Setup", "load_file", "scenario", "setup"]

Function = Callable[["Context"], Awaitable[Any]]
Setup = Callable[[Target | None], AbstractAsyncContextManager[Any]]
_F = TypeVar("_F", bound=Callable[..., Any])

_SCENARIO = "__load_scenario__"
_SETUP = "__load_setup__"


@dataclass(frozen=True)
class Scenario:
    """A kind of request.

    Attributes:
        function: makes one request; what it raises is the request's error.
        label: what reports call it.
        weight: how often it is chosen, relative to the others.
    """

    function: Function
    label: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not inspect.iscoroutinefunction(self.function):
            raise ConfigError(
                f"scenario {self.label!r}: {self.function!r} is no coroutine function; "
                "expected async def name(ctx)"
            )
        if not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"scenario {self.label!r}: weight is {self.weight!r}, expected a number above 0"
            )
        if not self.label or "/" in self.label or not self.label.isprintable():
            raise ConfigError(f"label {self.label!r} must be printable text without a '/'")


class Context:
    """What a scenario gets; it is the scenario's own until its coroutine ends.

    Attributes:
        target: what the test is aimed at; None if the scenario has it from elsewhere.
        pool: the pool of connections to the target; None if there is no protocol for it.
        client: what the file's ``setup`` gave.
        rng: seeded random numbers of this one caller.
        number: which request of this process it is, from 0.
        intended: when the request was due, by ``clock``.
        dequeued: when the scenario was called.
        sent: when the request was sent: set by :meth:`connect` once a connection is there, or by
            :meth:`sending`; 0.0 before.
        proxy: the fault proxy between client and target, if the plan has faults.
    """

    __slots__ = (
        "_mark",
        "client",
        "clock",
        "dequeued",
        "intended",
        "number",
        "pool",
        "proxy",
        "rng",
        "sent",
        "target",
    )

    def __init__(
        self,
        *,
        target: Target | None,
        pool: Any,
        client: Any,
        rng: Random,
        clock: Callable[[], float],
        mark: Callable[[str], None],
        proxy: Any = None,
    ) -> None:
        self.target = target
        self.pool = pool
        self.client = client
        self.rng = rng
        self.clock = clock
        self.proxy = proxy
        self.number = 0
        self.intended = self.dequeued = self.sent = 0.0
        self._mark = mark

    def connect(self) -> "TimedLease":
        """Lease a connection: ``async with ctx.connect() as connection``.

        The wait for it is reported as ``pool_wait``; the request counts as sent once it is there.
        """
        return TimedLease(self)

    def sending(self) -> None:
        """Say that the request is sent now: what was before is reported as ``pool_wait``."""
        self.sent = self.clock()

    def mark(self, text: str) -> None:
        """Put a mark on the time line of the report."""
        self._mark(text)


class TimedLease:
    """A lease of the context's pool that notes when it was there."""

    __slots__ = ("_context", "_lease")

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __aenter__(self) -> Any:
        context = self._context
        if context.pool is None:
            raise ConfigError("there is no pool: give a target and a --protocol")
        self._lease = context.pool.connect()
        lease = await self._lease.__aenter__()
        context.sent = context.clock()
        return lease

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._lease.__aexit__(*exc_info)


def scenario(*, weight: float = 1.0, label: str | None = None) -> Callable[[_F], _F]:
    """Make a coroutine function a scenario of its file.

    Args:
        weight: how often it is chosen, relative to the other scenarios of the file.
        label: what reports call it; the function's name by default.

    Raises:
        ConfigError: it is no coroutine function, or a value is out of range.
    """

    def decorate(function: _F) -> _F:
        name = getattr(function, "__name__", "scenario")
        setattr(function, _SCENARIO, Scenario(function, label or name, weight))
        return function

    return decorate


def setup(function: _F) -> _F:
    """Make an asynchronous generator function the setup of its file.

    It is called once in each process, with the :class:`Target` or None; what it yields is
    ``ctx.client`` of every request, what follows the ``yield`` runs at the end of the test.
    """
    if not inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"setup {function!r} must be an async def with one yield that gives the client"
        )
    setattr(function, _SETUP, asynccontextmanager(function))
    return function


@dataclass(frozen=True)
class ScenarioFile:
    """What a file defines.

    Attributes:
        scenarios: its functions with ``@load.scenario()``, in order.
        setup: its function with ``@load.setup``.
        faults: its list ``FAULTS``.
    """

    scenarios: tuple[Scenario, ...]
    setup: Setup | None = None
    faults: tuple[Fault, ...] = ()


def scenario_of(function: Callable[..., Any]) -> Scenario:
    """Give the scenario of a coroutine function, decorated or not."""
    found = getattr(function, _SCENARIO, None)
    if isinstance(found, Scenario):
        return found
    return Scenario(function, getattr(function, "__name__", "scenario"))


def load_file(path: str | Path) -> ScenarioFile:
    """Import a Python file and collect its scenarios in order.

    Raises:
        ConfigError: it can't be imported, or has no scenario.
    """
    module = _import(Path(path))
    scenarios = []
    setups = []
    for value in list(vars(module).values()):
        if isinstance(found := getattr(value, _SCENARIO, None), Scenario):
            scenarios.append(found)
        elif (made := getattr(value, _SETUP, None)) is not None:
            setups.append(made)
    if not scenarios:
        raise ConfigError(
            f"{path} has no scenario: decorate a coroutine function with @load.scenario()"
        )
    labels = [found.label for found in scenarios]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"{path} has two scenarios with the label {sorted(twice)[0]!r}")
    if len(setups) > 1:
        raise ConfigError(f"{path} has {len(setups)} functions with @load.setup, at most one")
    faults = tuple(Fault.parse(text) for text in getattr(module, "FAULTS", ()))
    return ScenarioFile(tuple(scenarios), setups[0] if setups else None, faults)


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"scenario file {str(path)!r} does not exist")
    spec = importlib.util.spec_from_file_location(f"load_scenario_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"scenario file {str(path)!r} must be a Python file: name.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # A scenario file may have modules beside it, as a script may.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as exc:
        raise ConfigError(f"{path} can't be imported: {type(exc).__name__}: {exc}") from exc
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
