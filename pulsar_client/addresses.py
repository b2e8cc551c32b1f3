"""Addresses of stream and datagram sockets: parse, check, format.

============================  ==========================================================
form                          meaning
============================  ==========================================================
``(host, port)``              a host name or an IP literal; port 0 lets the system choose
``("", port)``                every interface, IPv4 and IPv6
``(host, port, flow, scope)`` what ``getsockname`` gives for IPv6
``"unix:/path"``              a unix socket; ``"unix:@name"`` is one of Linux's abstract names
============================  ==========================================================

This module must not know of loops, servers, clients or settings; it opens no socket but the one
that probes a unix path.
"""

import errno
import os
import socket
from typing import TypeAlias

__all__ = [
    "Address",
    "check_address",
    "format_address",
    "is_unix_socket_alive",
    "parse_address",
    "unix_path",
]

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str

_UNIX = "unix:"
_MAX_PORT = 65535
_FORMS = "HOST:PORT, :PORT, [IPv6]:PORT or unix:PATH"


def parse_address(text: str) -> Address:
    """Read an address as it is written in settings.

    Args:
        text: ``HOST:PORT``, ``:PORT`` (every interface), ``[::1]:PORT`` or ``unix:PATH``; white
            space around it is ignored.

    Returns:
        ``(host, port)`` or ``"unix:PATH"``.

    Raises:
        TypeError: `text` is not a string.
        ValueError: it has another form; the message names it and the forms allowed.
    """
    if not isinstance(text, str):
        raise TypeError(f"an address in text form must be a str, not {text!r}")
    stripped = text.strip()
    if stripped.startswith(_UNIX):
        return check_address(stripped)
    host, colon, port = stripped.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or "/" in host or "\0" in host:
        raise ValueError(f"address {text!r} must be {_FORMS}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"address {text!r} must have an IPv6 address within its brackets")
    elif ":" in host or "[" in host or "]" in host:
        raise ValueError(f"address {text!r}: an IPv6 address is written as [::1]:PORT")
    if len(port) > len(str(_MAX_PORT)) or int(port) > _MAX_PORT:
        raise ValueError(f"address {text!r}: the port must be 0 to {_MAX_PORT}")
    return check_address((host, int(port)))


def check_address(address: Address) -> Address:
    """Check the form of an address that a user passed; nothing is resolved.

    Returns:
        `address`, unchanged.

    Raises:
        TypeError: it is neither a tuple nor a string, or its host is not a string.
        ValueError: a part of it is not allowed.  The messages name the address and what would be
            right.
    """
    if isinstance(address, str):
        _check_unix(address)
    elif isinstance(address, tuple):
        _check_inet(address)
    else:
        raise TypeError(f"address must be (host, port) or 'unix:/path', not {address!r}")
    return address


def unix_path(address: Address) -> str | None:
    r"""Give the path of a unix address in the form the socket calls take.

    Returns:
        The path, ``"\0name"`` for an abstract ``"unix:@name"``, or None for an address that is
        not a unix one.
    """
    if not isinstance(address, str) or not address.startswith(_UNIX):
        return None
    path = address[len(_UNIX) :]
    return "\0" + path[1:] if path.startswith("@") else path


def format_address(address: object) -> str:
    """Write an address for people: ``127.0.0.1:8060``, ``[::1]:8060``, ``unix:/tmp/x``.

    Args:
        address: any address of this library or what ``getsockname`` and ``getpeername`` give,
            including the empty name of a unix socket that was never bound (``unix:``) and None
            (``unknown``).

    Returns:
        One line.  Unprintable characters are escaped: a peer chooses the name of its unix socket,
        and must not be able to write lines of its own into a log.  Nothing is raised.
    """
    if address is None:
        return "unknown"
    if isinstance(address, tuple) and len(address) in (2, 4):
        text = _format_inet(*address)
    elif isinstance(address, (str, bytes)):
        text = os.fsdecode(address)
        if not text.startswith(_UNIX):
            text = _UNIX + ("@" + text[1:] if text.startswith("\0") else text)
    else:
        text = str(address)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def is_unix_socket_alive(path: str) -> bool:
    """Find out whether anybody listens on the unix socket `path`.

    It connects once without waiting and closes at once: the listener sees a connection that ends
    without a byte.

    Returns:
        False only if it is certain that nobody answers: there is no such path, or the connection
        is refused.  A listener whose queue is full is alive, and so is one that this process may
        not connect to.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A blocking connect would wait for as long as the queue of the listener is full.
        probe.setblocking(False)
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def _check_unix(address: str) -> None:
    if not address.startswith(_UNIX):
        raise ValueError(
            f"address {address!r} must be (host, port) or 'unix:/path'; "
            f"pulsar_client.addresses.parse_address() reads {_FORMS}"
        )
    path = address[len(_UNIX) :]
    if path in ("", "@"):
        raise ValueError(f"address {address!r} must have a path behind 'unix:'")
    if "\0" in path:
        raise ValueError(f"address {address!r} must not have a NUL in its path")


def _check_inet(address: tuple[object, ...]) -> None:
    if len(address) not in (2, 4):
        raise ValueError(f"address {address!r} must be (host, port)")
    host, port, *rest = address
    if not isinstance(host, str):
        raise TypeError(
            f"address {address!r}: the host must be a str ('' for every interface), not {host!r}"
        )
    if "\0" in host:
        raise ValueError(f"address {address!r}: the host must not have a NUL in it")
    if type(port) is not int or not 0 <= port <= _MAX_PORT:
        raise ValueError(
            f"address {address!r}: the port must be an int from 0 to {_MAX_PORT}, not {port!r}"
        )
    for number in rest:
        if type(number) is not int or number < 0:
            raise ValueError(
                f"address {address!r}: flow info and scope id must be ints from 0, not {number!r}"
            )


def _format_inet(host: object, port: object, flow: object = 0, scope: object = 0) -> str:
    if isinstance(host, bytes):
        host = os.fsdecode(host)
    if ":" not in str(host):
        return f"{host}:{port}"
    if scope and "%" not in str(host):
        return f"[{host}%{scope}]:{port}"
    return f"[{host}]:{port}"
