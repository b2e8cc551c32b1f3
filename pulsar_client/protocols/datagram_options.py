"""What the system tells and takes beside the bytes of a datagram: buffers, errors, addresses.

Everything here is a plain function of a socket and never waits.  What a platform does not have is
left out, and the functions say so by what they return.  This module must not know of loops,
transports or protocols.
"""

import errno
import os
import socket
import struct
import sys
from typing import Any

__all__ = [
    "AskedAddress",
    "enable_asked_address",
    "enable_error_queue",
    "grow_receive_buffer",
    "kernel_drops",
    "read_error",
    "receive_asked",
    "reply_ancillary",
]

_LINUX = sys.platform == "linux"
# Numbers of Linux that the socket module does not name (ip(7), ipv6(7), socket(7)).
_IP_PKTINFO = 8
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_SO_MEMINFO = 55
_MEMINFO_DROPS = 8  # the index in its array of 32 bit numbers

_IN_PKTINFO = struct.Struct("@i4s4s")  # interface, address to answer from, address of the header
_IN6_PKTINFO = struct.Struct("@16sI")  # address, interface
_EXTENDED_ERR = struct.Struct("@IBBBBII")  # errno, origin, type, code, pad, info, data
_ANCILLARY = socket.CMSG_SPACE(64) if hasattr(socket, "CMSG_SPACE") else 0
_QUOTE = 2048


class AskedAddress(tuple[Any, ...]):
    """The address of a peer, which also knows at which of our addresses the peer has asked.

    It is equal to the plain tuple.  What is sent to it leaves from the address that was asked, on
    a socket that is bound to every interface too.
    """

    #: The ancillary data that makes a reply leave from the right address.
    reply_with: list[tuple[int, int, bytes]]


def grow_receive_buffer(sock: socket.socket, size: int) -> int:
    """Ask for a receive buffer of so many bytes, never for less than there is.

    Returns:
        The size that the system granted.  Linux counts its own overhead in: it says twice the
        size that it allows.
    """
    granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    if granted < size:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        except OSError:
            return granted  # some systems refuse what is too much instead of granting less
        granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return granted


def kernel_drops(sock: socket.socket) -> int | None:
    """Datagrams that the system dropped, mostly because the receive buffer was full.

    Returns:
        The number since the socket was made, or None where the system does not say.
    """
    if not _LINUX:
        return None
    try:
        info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_MEMINFO_DROPS + 1))
    except OSError:
        return None
    if len(info) < 4 * (_MEMINFO_DROPS + 1):
        return None
    drops: int = struct.unpack_from("@I", info, 4 * _MEMINFO_DROPS)[0]
    return drops


def enable_error_queue(sock: socket.socket) -> bool:
    """Have the system keep who could not be reached, on sockets that are not connected too.

    Returns:
        Whether it does; if so, `read_error` tells.
    """
    if not _LINUX or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    except OSError:
        return False
    return True


def read_error(sock: socket.socket) -> tuple[OSError, Any, bytes]:
    """Take one entry from the error queue of a socket.

    Returns:
        The error, the address that a datagram had been sent to, and as much of that datagram as
        the network gave back, perhaps nothing.

    Raises:
        BlockingIOError: the queue is empty.
        OSError: the socket has no such queue, or is closed.
    """
    quoted, ancillary, _, address = sock.recvmsg(_QUOTE, 512, socket.MSG_ERRQUEUE)
    number = errno.ECONNREFUSED
    for level, kind, data in ancillary:
        if (level, kind) in (
            (socket.IPPROTO_IP, _IP_RECVERR),
            (socket.IPPROTO_IPV6, _IPV6_RECVERR),
        ) and len(data) >= _EXTENDED_ERR.size:
            number = _EXTENDED_ERR.unpack_from(data)[0]
    return OSError(number, os.strerror(number)), address, quoted


def enable_asked_address(sock: socket.socket) -> bool:
    """Have the system tell to which of our addresses a datagram was sent.

    Only a socket that is bound to every interface needs it.

    Returns:
        Whether it does; if so, use `receive_asked` instead of ``recvfrom``.
    """
    if not hasattr(sock, "recvmsg"):
        return False
    try:
        if sock.family == socket.AF_INET6:
            if sock.getsockname()[0] != "::":
                return False
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif _LINUX and sock.family == socket.AF_INET and sock.getsockname()[0] == "0.0.0.0":
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            return False
    except (AttributeError, OSError):
        return False
    return True


def receive_asked(sock: socket.socket, size: int) -> tuple[bytes, Any]:
    """Receive one datagram, as ``recvfrom`` does, with an `AskedAddress` as the address."""
    data, ancillary, _, name = sock.recvmsg(size, _ANCILLARY)
    for level, kind, info in ancillary:
        reply = reply_ancillary(level, kind, info)
        if reply is not None:
            address = AskedAddress(name)
            address.reply_with = [reply]
            return data, address
    return data, name


def reply_ancillary(level: int, kind: int, info: bytes) -> tuple[int, int, bytes] | None:
    """What to send with a reply to a datagram that came with such ancillary data."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(info) >= _IN_PKTINFO.size:
        # The system names the address of ours to answer from: for a broadcast too.  Interface 0:
        # the reply is routed as any other, only its source is fixed.
        source = _IN_PKTINFO.unpack_from(info)[1]
        return level, kind, _IN_PKTINFO.pack(0, source, b"\0\0\0\0")
    if (
        level == socket.IPPROTO_IPV6
        and kind == getattr(socket, "IPV6_PKTINFO", -1)
        and len(info) >= _IN6_PKTINFO.size
    ):
        asked, interface = _IN6_PKTINFO.unpack_from(info)
        if asked[0] == 0xFF:
            return None  # multicast: no source of a reply
        # A link-local address means nothing without its interface.
        local = asked[0] == 0xFE and asked[1] & 0xC0 == 0x80
        return level, kind, _IN6_PKTINFO.pack(asked, interface if local else 0)
    return None
