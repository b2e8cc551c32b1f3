"""What a pipelined connection must know of a protocol, where a parser tells the replies apart."""

from collections.abc import Iterator
from typing import Any, Protocol

__all__ = ["Codec", "checked_codec"]


class Codec(Protocol):
    """What a pipelined connection has to know of a protocol; there is one for each connection.

    A decoder of this library with an ``encode`` of one's own is a codec.
    """

    @property
    def pending(self) -> int:
        """How many bytes were fed and are not part of a reply that was given out."""

    def encode(self, message: Any) -> bytes:
        """The bytes of a request; what it raises is raised to the caller, and nothing is sent."""

    def feed(self, data: bytes) -> object:
        """Take what has arrived.

        Raises:
            Exception: it is against the protocol; the connection is closed.
        """

    def __iter__(self) -> Iterator[Any]:
        """Give the replies that are complete, in order, until there is none.

        A reply that is an exception is raised to the caller; the connection goes on.  What the
        iteration itself raises closes the connection.
        """


def checked_codec(codec: Any, factory: object) -> Any:
    """Give back what a codec factory made, if it is a codec.

    Raises:
        TypeError: it lacks a member.
    """
    lacking = [
        name for name in ("encode", "feed", "__iter__", "pending") if not hasattr(codec, name)
    ]
    if lacking:
        raise TypeError(f"codec {factory!r} made {codec!r}, which has no {', '.join(lacking)}")
    return codec
