"""Checks of durations that users pass, in one place, so that the messages are alike."""

import math

__all__ = ["check_seconds"]


def check_seconds(name: str, value: float | None) -> None:
    """Refuse anything but None and a finite number of seconds >= 0.

    Raises:
        ValueError: the message names the parameter, the value and what would be right.
    """
    if value is None or (value.__class__ is float and 0.0 <= value < math.inf):
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected seconds >= 0 or None")
