"""Several commands as one: MULTI and EXEC in one go."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

from examples.redis_client.protocol import RedisError, Value, Words
from examples.redis_client.special import check_transactional

__all__ = ["Transaction", "WatchError", "exchange"]


class WatchError(RedisError):
    """Nothing was carried out: a key that was watched has changed."""


class Transaction:
    """Commands that are carried out together at the end of the block, or not at all.

    ``results`` has a result for each.  If one of them failed, the others have been carried out
    nevertheless, and its error is raised.

    Args:
        carry_out: sends the commands and returns their results; they may be errors.
    """

    def __init__(self, carry_out: Callable[[list[Words]], Awaitable[list[Any]]]) -> None:
        self._carry_out = carry_out
        self._commands: list[Words] = []
        #: What the commands were answered; an error is an object here.
        self.results: list[Any] = []

    def execute(self, *words: Value) -> None:
        """Add a command.

        Raises:
            TypeError: it can't be sent.
            ValueError: it can't be a part of a transaction: ``EXEC``, ``SELECT``, ``SUBSCRIBE``
                and their like.
        """
        check_transactional(words)
        self._commands.append(words)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        if exc_type is not None or not self._commands:
            return
        self.results = await self._carry_out(self._commands)
        for result in self.results:
            if isinstance(result, RedisError):
                raise result


async def exchange(connection: Any, commands: list[Words], timeout: float | None) -> list[Any]:
    """Carry out commands as one, on a connection that nobody else uses.

    Raises:
        RedisError: they were refused, and none was carried out.
        WatchError: the same, because a key that was watched has changed.
    """
    # Begun in one turn of the loop, they leave in one write.
    requests = [connection.request(words, timeout) for words in (("MULTI",), *commands, ("EXEC",))]
    *queued, results = await asyncio.gather(*requests, return_exceptions=True)
    failures = [reply for reply in (*queued, results) if isinstance(reply, BaseException)]
    if failures:
        # Why it was not carried out stands in the reply to the command that is wrong.
        raise failures[0]
    if results is None:
        raise WatchError("EXECABORT a key that was watched has changed")
    assert isinstance(results, list)
    return results
