"""What a consumer may return and raise, and a clear error where it does something else.

This module knows neither connections nor how consumers are fed.
"""

import asyncio

__all__ = ["checked_exception", "refuse_coroutine", "unused_bytes"]


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
