"""Durations, rates and sizes as people write them: ``250ms``, ``1.5k``, ``64KiB``."""

import math
import re

from pulsar_client.exceptions import ConfigError

__all__ = ["duration", "format_duration", "rate", "size"]

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_THOUSANDS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6}
_BYTES = {"": 1, "B": 1, "k": 1000, "kB": 1000, "KB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 2**20}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµ]*)\s*")


def duration(text: str) -> float:
    """Read a duration: a number of seconds, or a number with ns, us, ms, s, m or h.

    Raises:
        ConfigError: it is something else.
    """
    found = _QUANTITY.fullmatch(text)
    if found is None or (found[2] or "s") not in _SECONDS:
        raise ConfigError(f"{text!r} is no duration; expected 30, 30s, 250ms, 5m or 1h")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def rate(text: str) -> float:
    """Read a rate: requests a second, as in ``2000``, ``2k`` or ``1.5k``.

    Raises:
        ConfigError: it is something else.
    """
    found = _QUANTITY.fullmatch(text.removesuffix("/s"))
    if found is None or found[2] not in _THOUSANDS:
        raise ConfigError(f"{text!r} is no rate; expected requests a second: 2000 or 2k")
    return float(found[1]) * _THOUSANDS[found[2]]


def size(text: str) -> int:
    """Read a number of bytes, as in ``64``, ``64KiB`` or ``1MB``.

    Raises:
        ConfigError: it is something else.
    """
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in _BYTES:
        raise ConfigError(f"{text!r} is no size; expected bytes: 64, 4KiB or 1MB")
    return int(float(found[1]) * _BYTES[found[2]])


def format_duration(seconds: float) -> str:
    """Write a duration with a unit that fits: ``12.3 us``, ``4.56 ms``, ``1.20 s``."""
    if not math.isfinite(seconds):
        return str(seconds)
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        value = seconds * factor
        if value < 999.5:
            return f"{value:.3g} {unit}" if value else "0 us"
    return f"{seconds:.2f} s" if seconds < 999.5 else f"{seconds:.0f} s"
