"""Line: a key-value store over a protocol of lines, as a client and a server of one's own."""

from examples.line.client import LineClient, LineError
from examples.line.server import LineServer

__all__ = ["LineClient", "LineError", "LineServer"]
