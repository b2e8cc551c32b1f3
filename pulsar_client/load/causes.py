"""Why a request failed: a cause that failures are counted by, and an example of it.

A cause is the same for all failures of a kind; what differs among them, the text of the error and
the line of the scenario, is in the example.
"""

import ssl
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from traceback import walk_tb
from typing import Any

from pulsar_client.exceptions import ConnectionClosed, PoolUnavailable

__all__ = ["cause_of", "described", "example_of"]

_PACKAGE = __name__.partition(".")[0]


def cause_of(exc: BaseException) -> str:
    """Name the cause of an error in few words, so that errors can be counted by it."""
    if isinstance(exc, PoolUnavailable) and exc.__cause__ is not None:
        return f"can't connect: {_name_of(exc.__cause__)}"
    if isinstance(exc, ConnectionClosed):
        return "connection closed"
    return _name_of(exc)


def described(exc: BaseException) -> str:
    """Name an error and give its text; of a dial that failed, that of its cause."""
    if isinstance(exc, PoolUnavailable) and exc.__cause__ is not None:
        exc = exc.__cause__
    name, text = _name_of(exc), str(exc)
    return f"{name}: {text}" if text else name


def example_of(exc: BaseException, scenario: Callable[..., Any], text: str = "") -> str:
    """Give the example of a cause: an error, or `text` instead, and where its scenario was."""
    place = _place_of(exc, scenario)
    text = text or described(exc)
    return f"{place}: {text}" if place else text


def _place_of(exc: BaseException, scenario: Callable[..., Any]) -> str:
    """Give ``file.py:line`` of the last line in a scenario's file that an error came through.

    It is "" where there is none, as in the request of a built-in protocol.
    """
    function = unwrap(scenario)
    code = getattr(function, "__code__", None)
    if code is None or function.__module__.partition(".")[0] == _PACKAGE:
        return ""
    file, place = code.co_filename, 0
    for frame, line in walk_tb(exc.__traceback__):
        if frame.f_code.co_filename == file:
            place = line
    return f"{Path(file).name}:{place}" if place else ""


def _name_of(exc: BaseException) -> str:
    """Name the kind of an error, without the names that this package keeps to itself."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "certificate refused"
    ours = (kind for kind in type(exc).__mro__ if kind.__module__.partition(".")[0] == _PACKAGE)
    private = {kind for kind in ours if kind.__name__.startswith("_")}
    return next(kind.__name__ for kind in type(exc).__mro__ if kind not in private)
