"""What a consumer may leave out, return and raise, and a clear error where it does otherwise.

This module knows neither connections nor how consumers are fed.
"""

import asyncio

__all__ = ["checked_exception", "checked_rest", "complete", "refuse_coroutine", "unused_bytes"]

_INITIAL: dict[str, object] = dict.fromkeys(
    ("_many_times", "_one_time", "_given", "_pipeline", "_waiter", "connection")
)
_INITIAL |= dict.fromkeys(("_done", "_handed_over", "_sent", "_started"), False)


def complete(kind: type) -> None:
    """Give a class of consumers what the base's constructor sets: its own may not call that."""
    for name, value in _INITIAL.items():
        if not hasattr(kind, name):  # it may have a property of that name
            setattr(kind, name, value)


def checked_exception(exc: object) -> BaseException:
    """What awaiting a request raises; always something that can be raised there."""
    if not isinstance(exc, BaseException):
        return TypeError(f"finished() was given exc={exc!r}, expected an exception or None")
    if isinstance(exc, StopIteration):
        # It would end the await itself.
        error = RuntimeError(f"the request raised {exc!r}")
        error.__cause__ = exc
        return error
    return exc


def refuse_coroutine(consumer: object, method: str, result: object) -> None:
    """Refuse a method that is a coroutine function: nobody would await it.

    Raises:
        TypeError: ``result`` is a coroutine.
    """
    if asyncio.iscoroutine(result):
        result.close()
        raise TypeError(
            f"{type(consumer).__name__}.{method}() is a coroutine function, expected a plain one; "
            "use create_task() for what has to wait"
        )


def checked_rest(rest: object, data: bytes, consumer: object, over: bool) -> bytes:
    """What a consumer leaves of its data, as bytes.

    One that is over and took nothing is refused: the next would do the same, for ever.  But one
    that has called ``upgrade`` leaves its data to a consumer of another kind: it is not over.

    Raises:
        TypeError: it is nothing like bytes.
        RuntimeError: it is refused.
    """
    left = unused_bytes(rest, consumer)
    if len(left) >= len(data) and over:
        raise RuntimeError(f"{consumer!r} finished without taking a byte of what it was given")
    return left


def unused_bytes(rest: object, consumer: object) -> bytes:
    """What ``data_received`` returned, as bytes.

    Raises:
        TypeError: it is nothing like bytes.
    """
    if isinstance(rest, bytes):
        return rest
    if isinstance(rest, bytearray | memoryview):
        return bytes(rest)
    hint = ""
    if asyncio.iscoroutine(rest):
        rest.close()
        hint = "; it must be no coroutine function, use create_task() for what has to wait"
    raise TypeError(
        f"{type(consumer).__name__}.data_received() returned {rest!r}, expected the unused bytes "
        f"or None{hint}"
    )
