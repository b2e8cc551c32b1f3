"""What the system has received of a connection's peer, and the loop has not seen yet."""

import select
from typing import Any

__all__ = ["has_unread"]


def has_unread(connection: Any) -> bool:
    """True if the system has bytes of the peer, or its end of file, that nobody has read.

    A server that ends sends its end of file right behind the last reply.  The task that gets the
    reply runs before the loop looks at the socket again, and would write its next request into
    the void (P16).

    Args:
        connection: keeps in its ``_poll`` what looks at its socket.
    """
    poll = connection._poll
    if poll is None:
        poll = connection._poll = _poll_of(connection._transport)
    return poll is not False and bool(poll.poll(0))


def _poll_of(transport: Any) -> Any:
    """What tells whether the socket of a plain transport has something to read; else False."""
    sock = transport.get_extra_info("socket")
    # Over TLS there may be bytes that are nobody's: session tickets, say.
    if sock is None or transport.get_extra_info("sslcontext") or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return poll
