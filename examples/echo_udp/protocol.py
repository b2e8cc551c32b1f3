"""The protocol: one datagram is one message and ends with a newline; the answer is the same."""

from pulsar_client import ProtocolConsumer, ProtocolError

END = b"\n"
#: All that fits into a datagram.  On the loopback interface that is no problem; on a network, what
#: is longer than ``DatagramProtocol.max_payload`` by default is cut in pieces on its way.
MAX_DATAGRAM = 65507


class EchoUdpProtocol(ProtocolConsumer):
    """One exchange, client side: the result is the message without its newline.

    Nothing in the protocol tells one reply from another, so it has no ``match_key``: an endpoint
    makes one request at a time.  For many at a time there is the pool.
    """

    def start_request(self) -> None:
        """Send the message."""
        self.write(self.request + END)

    def data_received(self, data: bytes) -> None:
        """Take the answer; what does not end as it must is not one."""
        if data.endswith(END):
            self.finished(data[: -len(END)])


class EchoUdpServerProtocol(ProtocolConsumer):
    """One exchange, server side."""

    def data_received(self, data: bytes) -> None:
        """Answer a message; a datagram that is none is dropped, and counted as malformed."""
        if not data.endswith(END):
            raise ProtocolError(f"a datagram of {len(data)} bytes without {END!r} at its end")
        self.write(data)
        self.finished()
