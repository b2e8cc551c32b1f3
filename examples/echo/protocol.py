"""The echo protocol: a message ends with a blank line, the answer is the same message."""

from pulsar_client import Connection, DelimitedDecoder, ProtocolConsumer

SEPARATOR = b"\r\n\r\n"
MAX_MESSAGE = 2**24
QUIT = b"QUIT"


class EchoProtocol(ProtocolConsumer):
    """One exchange, client side: the result is the message without its separator."""

    def connection_made(self, connection: Connection) -> None:
        """Begin: one decoder for each message."""
        self.decoder = DelimitedDecoder(SEPARATOR, max_size=MAX_MESSAGE)

    def start_request(self) -> None:
        """Send the message."""
        self.write(self.request + SEPARATOR)

    def data_received(self, data: bytes) -> bytes:
        """Collect the answer."""
        message, rest = self.decoder.decode(data)
        if message is not None:
            self.finished(message)
            if message == QUIT:
                # The server is about to close: the next call must not find this connection idle.
                self.connection.close()
        return rest


class EchoServerProtocol(EchoProtocol):
    """One exchange, server side; the message ``QUIT`` is answered and ends the connection."""

    def data_received(self, data: bytes) -> bytes:
        """Answer a message as soon as it is complete."""
        message, rest = self.decoder.decode(data)
        if message is not None:
            self.write(message + SEPARATOR)
            self.finished()
            if message == QUIT:
                self.connection.close()
        return rest
