"""One query and its answer, over UDP and over TCP.  The wire format is dnspython's.

What comes back is taken only if it has the id of the query and asks the very question that was
asked, the case of each letter included: whoever can't see the query has to guess both.
"""

import random
import struct
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdatatype

from pulsar_client import Connection, LengthPrefixedDecoder, ProtocolConsumer, ProtocolError

#: What fits through IPv6's smallest network in one piece, and is asked for with EDNS.
PAYLOAD = 1232

_chance = random.SystemRandom()


def in_random_case(name: str) -> dns.name.Name:
    """The name, absolute, with the case of each letter drawn at random.

    Raises:
        dns.exception.DNSException: it is not a name.
    """
    text = "".join(letter.upper() if _chance.getrandbits(1) else letter.lower() for letter in name)
    return dns.name.from_text(text)


class Question:
    """What is asked: a name and a record type such as ``"A"``."""

    def __init__(self, name: str, rdtype: str) -> None:
        self.name = in_random_case(name)
        self.rdtype = dns.rdatatype.from_text(rdtype)

    def __repr__(self) -> str:
        return f"{self.name} {dns.rdatatype.to_text(self.rdtype)}"

    def to_wire(self, number: int) -> bytes:
        """The query, with an id."""
        query = dns.message.make_query(self.name, self.rdtype, id=number, use_edns=0)
        query.use_edns(0, payload=PAYLOAD)
        wire: bytes = query.to_wire()
        return wire

    def read_answer(self, wire: bytes) -> Any:
        """The message, if it is an answer to this question; None if it is something else.

        A truncated one is an answer as well: its flag says that there is more to ask for.
        """
        try:
            message = dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=False)
        except (dns.exception.DNSException, ValueError, IndexError, struct.error):
            return None
        if not message.flags & dns.flags.QR or len(message.question) != 1:
            return None
        asked = message.question[0]
        if asked.rdtype != self.rdtype or asked.name.labels != self.name.labels:
            return None
        return message


class UdpQuery(ProtocolConsumer):
    """A query over UDP; its result is a ``dns.message.Message``, perhaps a truncated one."""

    #: It does no harm to ask twice.
    idempotent = True

    @staticmethod
    def match_key(data: bytes) -> bytes:
        """The id: the first two bytes."""
        return data[:2]

    def start_request(self) -> None:
        """Ask, with an id that no other query of this socket has."""
        number = int.from_bytes(self.connection.fresh_key(size=2), "big")
        self.write(self.request.to_wire(number))

    def data_received(self, data: bytes) -> None:
        """Take the answer; a forged one is ignored, the right one may still come."""
        answer = self.request.read_answer(data)
        if answer is not None:
            self.finished(answer)


class TcpQuery(ProtocolConsumer):
    """A query over TCP, where messages stand behind their length."""

    def connection_made(self, connection: Connection) -> None:
        """Begin an exchange."""
        if connection.parser is None:
            connection.parser = LengthPrefixedDecoder(2, max_size=65535)

    def start_request(self) -> None:
        """Ask."""
        self.number = _chance.getrandbits(16)
        wire = self.request.to_wire(self.number)
        self.write(len(wire).to_bytes(2, "big") + wire)

    def data_received(self, data: bytes) -> bytes:
        """Take the answer; on a stream a wrong one is the server's fault."""
        decoder: LengthPrefixedDecoder = self.connection.parser
        wire, rest = decoder.decode(data)
        if wire is not None:
            answer = self.request.read_answer(wire)
            if answer is None or wire[:2] != self.number.to_bytes(2, "big"):
                raise ProtocolError(f"{self.address} answered something else than {self.request}")
            self.finished(answer)
        return rest
