"""What the tests of codecs share: the least codec there is.

Not a test module.
"""

from typing import Any

from pulsar_client import DelimitedDecoder

__all__ = ["LineCodec"]


class LineCodec(DelimitedDecoder):
    """A line a message."""

    def __init__(self) -> None:
        super().__init__(b"\n", max_size=1000)

    def encode(self, message: Any) -> bytes:
        """Write a message."""
        data: bytes = message + b"\n"
        return data
