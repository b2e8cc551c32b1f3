"""The echo protocol: a message ends with a blank line, the answer is the same message."""

from pulsar_client import Connection, DelimitedDecoder, ProtocolConsumer

SEPARATOR = b"\r\n\r\n"
MAX_MESSAGE = 2**24
QUIT = b"QUIT"


class EchoProtocol(ProtocolConsumer):
    """One exchange, client side: the result is the message without its separator."""

    def connection_made(self, connection: Connection) -> None:
        """Begin an exchange: the first on a connection makes the decoder for all."""
        if connection.parser is None:
            connection.parser = DelimitedDecoder(SEPARATOR, max_size=MAX_MESSAGE)

    def start_request(self) -> None:
        """Send the message."""
        self.write(self.request + SEPARATOR)

    def data_received(self, data: bytes) -> bytes:
        """Collect the answer."""
        decoder: DelimitedDecoder = self.connection.parser
        message, rest = decoder.decode(data)
        if message is not None:
            self.finished(message)
            if message == QUIT:
                # The server is about to close: the next call must not find this connection idle.
                self.connection.close()
        return rest


class EchoServerProtocol(EchoProtocol):
    """One exchange, server side; the message ``QUIT`` is answered and ends the connection."""

    def eof_received(self) -> bool:
        """Nothing is due: a message is answered when it is complete."""
        return False

    def data_received(self, data: bytes) -> bytes:
        """Answer a message as soon as it is complete."""
        decoder: DelimitedDecoder = self.connection.parser
        message, rest = decoder.decode(data)
        if message is not None:
            self.write(message + SEPARATOR)
            self.finished()
            if message == QUIT:
                self.connection.close()
        return rest
