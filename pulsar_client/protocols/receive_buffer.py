"""One buffer for what all the connections of a loop receive.

asyncio reads into a fresh block of 256 KiB each time and cuts it down to what has come.  That
costs more than the rest of the read when malloc gives the block back to the system and fetches it
again.  A ``BufferedProtocol`` brings its own buffer; since the loop fills it and hands it over in
one step, one is enough.  uvloop does the same by itself.
"""

import asyncio
import threading
import weakref
from typing import Any

__all__ = ["receive_in_buffer"]

#: Bytes that one read takes at most.
_SIZE = 65536


class _Here(threading.local):
    """The buffer of the loop that ran last in this thread."""

    loop: "weakref.ref[asyncio.AbstractEventLoop] | None" = None
    buffer: memoryview


_here = _Here()


def receive_in_buffer(protocol: Any, transport: Any) -> None:
    """Let a protocol's data come by way of its loop's buffer, where that is quicker.

    Args:
        protocol: a stream protocol; its ``data_received`` gets bytes as before.
        transport: has just been given to it.
    """
    loop = asyncio.get_running_loop()
    # A proactor fills the buffer while others may use it.
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return
    if transport.get_extra_info("socket") is None:
        return  # not the loop's own transport
    if _here.loop is None or _here.loop() is not loop:
        _here.loop = weakref.ref(loop)
        _here.buffer = memoryview(bytearray(_SIZE))
    transport.set_protocol(_Receiver(protocol, _here.buffer))


class _Receiver(asyncio.BufferedProtocol):
    """Stands between a transport and its protocol."""

    __slots__ = ("_buffer", "_protocol")

    def __init__(self, protocol: Any, buffer: memoryview) -> None:
        self._protocol = protocol
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        keep_open: bool | None = self._protocol.eof_received()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
