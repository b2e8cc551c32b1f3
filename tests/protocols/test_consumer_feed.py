"""What a server answers to requests that arrive together leaves together, and in order."""

from functools import partial
from typing import Any

from pulsar_client import Connection, ProtocolConsumer, TcpServer


class Transport:
    """Records what is written, and how."""

    def __init__(self, backlog: int = 0) -> None:
        self.writes: list[bytes] = []
        self.backlog = backlog
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.backlog

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default

    def close(self) -> None:
        self.closed = True

    abort = close


class Upper(ProtocolConsumer):
    """Answers each line in capitals; QUIT closes."""

    def data_received(self, data: bytes) -> bytes:
        line, found, rest = data.partition(b"\n")
        if found:
            self.answer(line)
            self.finished()
        return rest if found else data

    def answer(self, line: bytes) -> None:
        self.write(line.upper() + b"\n")
        if line == b"quit":
            self.connection.close()


class Direct(Upper):
    """Writes half of its answer past its connection."""

    def answer(self, line: bytes) -> None:
        self.write(line.upper())
        self.connection.transport.write(b"\n")


def served(consumer: type[ProtocolConsumer], backlog: int = 0) -> tuple[Any, Transport, TcpServer]:
    server = TcpServer(partial(Connection, consumer))
    connection = server.create_protocol()
    transport = Transport(backlog)
    connection.connection_made(transport)
    return connection, transport, server


async def test_answers_to_requests_that_arrive_together_leave_together() -> None:
    connection, transport, server = served(Upper)
    connection.data_received(b"".join(b"line %d\n" % n for n in range(16)))
    assert b"".join(transport.writes) == b"".join(b"LINE %d\n" % n for n in range(16))
    assert len(transport.writes) == 2  # the first at once, the others when all are known
    assert server.requests_processed == connection.requests_processed == 16
    connection.connection_lost(None)


async def test_one_request_is_answered_at_once() -> None:
    connection, transport, _ = served(Upper)
    for n in range(3):
        connection.data_received(b"line\n")
        assert len(transport.writes) == n + 1
    connection.connection_lost(None)


async def test_a_direct_write_does_not_overtake() -> None:
    connection, transport, _ = served(Direct)
    connection.data_received(b"a\nb\nc\nd\n")
    assert b"".join(transport.writes) == b"A\nB\nC\nD\n"
    connection.connection_lost(None)


async def test_a_close_sends_what_was_collected_and_nothing_after_it() -> None:
    connection, transport, _ = served(Upper)
    connection.data_received(b"a\nb\nquit\nc\n")
    assert b"".join(transport.writes) == b"A\nB\nQUIT\n"
    assert transport.closed
    connection.connection_lost(None)


async def test_nothing_is_collected_on_top_of_a_backlog() -> None:
    """P25."""
    connection, transport, _ = served(Upper, backlog=1)
    connection.data_received(b"a\nb\nc\n")
    assert transport.writes == [b"A\n", b"B\n", b"C\n"]
    connection.connection_lost(None)


async def test_what_is_collected_is_bounded() -> None:
    """P25: one system call holds about 64 KiB, not all that a peer may ask for."""

    class Large(Upper):
        def answer(self, line: bytes) -> None:
            self.write(line * 10_000 + b"\n")

    connection, transport, _ = served(Large)
    connection.data_received(b"x\n" * 100)
    assert sum(map(len, transport.writes)) == 100 * 10_001
    assert max(map(len, transport.writes)) <= 65536 + 10_001
    connection.connection_lost(None)


async def test_write_events_are_told_of_every_write() -> None:
    connection, transport, _ = served(Upper)
    told: list[bytes] = []
    connection.bind_event("after_write", lambda sender, data, **kw: told.append(data))
    connection.data_received(b"a\nb\nc\n")
    assert told == transport.writes == [b"A\n", b"B\n", b"C\n"]
    connection.connection_lost(None)


async def test_a_parser_is_shared_by_the_consumers_of_a_connection() -> None:
    connection, _, _ = served(Upper)
    assert connection.parser is None
    connection.parser = parser = object()
    connection.data_received(b"a\nb\n")
    assert connection.parser is parser
    connection.connection_lost(None)


class HalfKnows(Upper):
    """Knows that half a line is never answered."""

    def eof_received(self) -> bool:
        return False


async def test_half_a_message_and_the_end_of_file_close_at_once() -> None:
    """A10: nothing is due, so nothing is waited for."""
    for consumer, stays_open in ((HalfKnows, False), (Upper, True)):
        connection, transport, _ = served(consumer)
        connection.data_received(b"half a li")
        assert bool(connection.eof_received()) is stays_open
        assert transport.closed is not stays_open
        connection.connection_lost(None)
