"""How replies are written, in both versions of the protocol (RESP 2 and RESP 3)."""

__all__ = ["OK", "RedisFault", "array", "bulk", "integer", "mapping", "null", "push", "status"]

OK = b"+OK\r\n"


class RedisFault(Exception):
    """An error reply; its text begins with the error's code."""

    def encode(self) -> bytes:
        """As it is sent: one line, whatever the client put into it."""
        text = " ".join(str(self).split())
        return b"-%s\r\n" % text.encode(errors="replace")


def bulk(value: bytes) -> bytes:
    """A byte string."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def null(protocol: int) -> bytes:
    """Nothing."""
    return b"_\r\n" if protocol == 3 else b"$-1\r\n"


def integer(number: int) -> bytes:
    """A number."""
    return b":%d\r\n" % number


def status(text: str) -> bytes:
    """A short text of ours."""
    return b"+%s\r\n" % text.encode()


def array(replies: list[bytes]) -> bytes:
    """Several replies as one."""
    return b"*%d\r\n%s" % (len(replies), b"".join(replies))


def mapping(protocol: int, replies: list[bytes]) -> bytes:
    """Keys and values in turn."""
    if protocol == 3:
        return b"%%%d\r\n%s" % (len(replies) // 2, b"".join(replies))
    return array(replies)


def push(protocol: int, replies: list[bytes]) -> bytes:
    """What is sent without being asked for."""
    return (b">%d\r\n%s" if protocol == 3 else b"*%d\r\n%s") % (len(replies), b"".join(replies))
