"""What a consumer needs of its connection: the structure, not the class."""

from collections.abc import Awaitable
from typing import Any, Protocol

__all__ = ["ConsumerConnection"]


class ConsumerConnection(Protocol):
    """What a consumer needs of the connection that feeds it."""

    @property
    def transport(self) -> Any:
        """The transport, or None."""

    @property
    def producer(self) -> Any:
        """Who made the connection, or None."""

    @property
    def address(self) -> Any:
        """The peer's address."""

    @property
    def server_side(self) -> bool:
        """True where requests are answered, False where they are made."""

    def write(self, data: bytes | bytearray | memoryview) -> Awaitable[None] | None:
        """Hand bytes to the transport."""

    def request_done(self, consumer: Any) -> None:
        """The consumer takes no more data."""

    def request_ready(self, consumer: Any) -> None:
        """The coroutine callbacks of ``pre_request``, which held the request back, have ended."""

    def request_failed(self, consumer: Any, exc: BaseException) -> None:
        """The consumer raised ``exc`` where only the connection could catch it."""
