"""Datagram sockets that are bound: before any server or worker exists, shared or handed to one.

This module must not know of loops, servers, protocols or settings.  It reads nothing.
"""

import socket

from pulsar_client.addresses import Address, check_address, format_address
from pulsar_client.servers.listening_sockets import bind_end_points, end_points

__all__ = ["bind_datagram_sockets"]


def bind_datagram_sockets(address: Address) -> list[socket.socket]:
    """Bind the datagram sockets of an address.

    Args:
        address: ``(host, port)``: one socket for each address of the host; ``("", port)``: one
            for IPv4 and one for IPv6 on every interface.  With port 0 all of them have the
            same port.

    Returns:
        Non-blocking sockets, at least one, that child processes of another program don't
        inherit.  A host name is resolved here, which may block.

    Raises:
        TypeError, ValueError: the address is not allowed; unix sockets are not.
        OSError: an address can't be bound; it has the errno of the cause and names the address.
            Every socket opened here is closed then.  An address that this machine does not have
            (IPv6, mostly) is left out as long as another one can be bound.
    """
    check_address(address)
    if isinstance(address, str):
        raise ValueError(f"address is {address!r}, expected (host, port) for datagrams")
    try:
        return bind_end_points(end_points(address[0], address[1], socket.SOCK_DGRAM), _bind_one)
    except socket.gaierror as error:
        raise socket.gaierror(
            error.errno, f"can't resolve {format_address(address)}: {error.strerror}"
        ) from error
    except OSError as error:
        text = f"can't bind {format_address(address)}: {error.strerror or error}"
        # The constructor of OSError picks the subclass that fits the number.
        raise (OSError(error.errno, text) if error.errno else OSError(text)) from error


def _bind_one(family: socket.AddressFamily, name: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own on the same port.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # No SO_REUSEADDR: a second socket on the port would take the datagrams of the first.
        sock.bind(name)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
