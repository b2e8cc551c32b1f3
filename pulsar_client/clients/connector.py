"""Open a connected socket: resolve, race the addresses, keep the first that connects.

The race (RFC 8305, "Happy Eyeballs") is run here and not by the loop, because uvloop has none.  It
has no tasks: attempts are sockets in a table, and the loop calls back when one is decided.  So a
cancellation is answered synchronously, and nothing is left to wait for.

This module must not know of protocols, transports, pools, TLS or time-outs.
"""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

from pulsar_client.addresses import Address, check_address, format_address, unix_path

__all__ = ["is_ip_address", "open_socket", "resolve"]

_Name = tuple[str, int] | tuple[str, int, int, int]
# A socket address and the family that it belongs to.
_EndPoint = tuple[socket.AddressFamily, _Name]

# A listener on a unix socket whose queue is full refuses to let a non-blocking connect wait, and
# nothing tells when there is room: ask again after so many seconds, the last for ever.
_FULL_QUEUE_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


async def open_socket(
    address: Address,
    *,
    local_addr: tuple[str, int] | None = None,
    happy_eyeballs_delay: float | None = 0.25,
) -> socket.socket:
    """Connect to `address` and return the socket.

    An IP literal is not resolved.  Of a host with several addresses all are tried, the families
    taking turns: the next attempt begins when the one before has failed or has taken
    `happy_eyeballs_delay`, and the first to connect ends the others.

    Args:
        address: ``(host, port)``, with an empty host for this machine's loopback interface, or
            ``"unix:/path"``.
        local_addr: ``(host, port)`` to bind the socket to, not for unix sockets.  Remote addresses
            of a family that it has no address in are not tried.
        happy_eyeballs_delay: seconds between attempts; 0 tries all at once, None one after the
            other.

    Returns:
        A connected, non-blocking socket, a TCP one with ``TCP_NODELAY``.  The caller owns it.

    Raises:
        TypeError, ValueError: an argument is not allowed.
        socket.gaierror: a name can't be resolved.
        OSError: no address could be connected to.  The message names every one with its cause;
            class and errno are those of the causes if all agree (`ConnectionRefusedError`, say).

    There is no time-out: a listener that does not answer is waited for as long as the system
    does.  The caller sets the deadline, with ``asyncio.timeout_at`` for instance.  A cancellation
    takes effect at once and leaves no descriptor and no task behind; a name lookup that is under
    way ends in the thread of the loop's executor.
    """
    check_address(address)
    _check_delay(happy_eyeballs_delay)
    path = unix_path(address)
    if path is not None:
        if local_addr is not None:
            raise ValueError(f"local_addr must be None for {address!r}, not {local_addr!r}")
        return await _open_unix(path, address)
    if isinstance(local_addr, str):
        raise TypeError(f"local_addr must be (host, port), not {local_addr!r}")
    loop = asyncio.get_running_loop()
    local: Sequence[_EndPoint] | None = None
    if local_addr is not None:
        check_address(local_addr)
        local = await _resolve(loop, local_addr, ("0.0.0.0", "::"))
    remote = await _resolve(loop, address, ("127.0.0.1", "::1"))
    race = _Race(loop, address, _interleave(remote), local, happy_eyeballs_delay)
    return await race.run()


async def resolve(address: Address) -> list[_EndPoint]:
    """List the end points of ``(host, port)``, each a family and a socket address.

    Raises:
        socket.gaierror: the name can't be resolved.

    There is no time-out.  A cancelled lookup ends in the thread of the loop's executor.
    """
    return await _resolve(asyncio.get_running_loop(), address, ("127.0.0.1", "::1"))


def is_ip_address(address: Address) -> bool:
    """True for an address with nothing to resolve in it: an IP literal, or an empty host."""
    check_address(address)
    if isinstance(address, str):
        return False
    host = address[0]
    return not host or any(
        _is_literal(family, host) for family in (socket.AF_INET, socket.AF_INET6)
    )


class _Race:
    """The attempts to reach one of several end points.

    Each method but `run` is synchronous, and the loop calls no two at a time.  An attempt is in
    `_trying` from the moment its socket is watched until its result is known.  The race is over
    when `_done` is: then no socket is watched, no timer runs, and the only open socket is
    `_winner`, if there is one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        remote: Iterable[_EndPoint],
        local: Sequence[_EndPoint] | None,
        delay: float | None,
    ) -> None:
        self._loop = loop
        self._address = address
        self._waiting = deque(remote)
        self._local = local
        self._delay = delay
        self._trying: dict[socket.socket, _EndPoint] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._winner: socket.socket | None = None
        self._failures: list[tuple[str, OSError]] = []
        self._done: asyncio.Future[None] = loop.create_future()

    async def run(self) -> socket.socket:
        """Run the race; a cancellation closes every socket, that of a winner as well."""
        try:
            self._start_next()
            await self._done
        except BaseException:
            # The winner may be known and this task cancelled before it could see it.
            self._stop()
            if self._winner is not None:
                self._winner.close()
            raise
        if self._winner is None:
            raise _connect_error(self._address, self._failures)
        return self._winner

    def _start_next(self) -> None:
        """Begin attempts until one has to be waited for; called by `run`, timer and failures."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            remote = self._waiting.popleft()
            try:
                sock = self._begin(remote)
            except OSError as error:
                self._failed(remote, error)
                continue
            if sock is None:
                return
            self._trying[sock] = remote
            self._loop.add_writer(sock.fileno(), self._decide, sock)
            if self._waiting and self._delay is not None:
                self._timer = self._loop.call_later(self._delay, self._start_next)
            return
        if not self._trying:
            self._finish(None)

    def _begin(self, remote: _EndPoint) -> socket.socket | None:
        """Begin one attempt: its socket, to be watched, or None if it has won at once."""
        family, name = remote
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._local is not None:
                _bind(sock, self._local)
            number = sock.connect_ex(name)
            if number in (errno.EINPROGRESS, errno.EINTR):
                return sock
            _check_connected(sock, number)
        except BaseException:
            sock.close()
            raise
        self._finish(sock)
        return None

    def _decide(self, sock: socket.socket) -> None:
        """The socket became writable: its attempt has succeeded or failed."""
        self._loop.remove_writer(sock.fileno())
        remote = self._trying.pop(sock)
        try:
            _check_connected(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except OSError as error:
            sock.close()
            self._failed(remote, error)
            self._start_next()
        else:
            self._finish(sock)

    def _failed(self, remote: _EndPoint, error: OSError) -> None:
        # The frames of its traceback refer to this race: without it there is no cycle.
        self._failures.append((format_address(remote[1]), error.with_traceback(None)))

    def _finish(self, winner: socket.socket | None) -> None:
        self._winner = winner
        self._stop()
        # Cancelled already if the task of run() was, and has not had its turn yet.
        if not self._done.done():
            self._done.set_result(None)

    def _stop(self) -> None:
        """End every attempt.  A socket is closed only after the loop has let go of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        while self._trying:
            sock, _ = self._trying.popitem()
            self._loop.remove_writer(sock.fileno())
            sock.close()


async def _open_unix(path: str, address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        pauses = iter(_FULL_QUEUE_PAUSES)
        while number := sock.connect_ex(path):
            if number not in (errno.EAGAIN, errno.EINTR):
                raise OSError(number, os.strerror(number))
            await asyncio.sleep(next(pauses, _FULL_QUEUE_PAUSES[-1]))
    except OSError as error:
        sock.close()
        raise _connect_error(address, [(format_address(address), error)]) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolve(
    loop: asyncio.AbstractEventLoop, address: Address, empty: tuple[str, str]
) -> list[_EndPoint]:
    """List the end points of a TCP address; `empty` is what an empty host stands for."""
    assert not isinstance(address, str)
    host, port = address[:2]
    if not host:
        return [
            (socket.AF_INET, (empty[0], port)),
            (socket.AF_INET6, (empty[1], port, 0, 0)),
        ]
    if _is_literal(socket.AF_INET, host):
        return [(socket.AF_INET, (host, port))]
    if _is_literal(socket.AF_INET6, host):
        flow, scope = address[2:] if len(address) == 4 else (0, 0)
        return [(socket.AF_INET6, (host, port, flow, scope))]
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else socket.EAI_NONAME
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise socket.gaierror(
            number, f"can't resolve {format_address(address)}: {reason}"
        ) from error
    found: dict[_EndPoint, None] = {}
    for family, _, _, _, name in infos:
        if family in (socket.AF_INET, socket.AF_INET6):
            found[socket.AddressFamily(family), name] = None  # type: ignore[index]
    if not found:
        raise socket.gaierror(
            socket.EAI_NONAME, f"can't resolve {format_address(address)}: it has no address"
        )
    return list(found)


def _is_literal(family: socket.AddressFamily, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except (OSError, UnicodeError):
        return False
    return True


def _interleave(end_points: Sequence[_EndPoint]) -> list[_EndPoint]:
    """Let the families take turns, the resolver's first one beginning (RFC 8305, section 4)."""
    families: dict[socket.AddressFamily, list[_EndPoint]] = {}
    for end_point in end_points:
        families.setdefault(end_point[0], []).append(end_point)
    turns = chain.from_iterable(zip_longest(*families.values()))
    return [end_point for end_point in turns if end_point is not None]


def _bind(sock: socket.socket, local: Iterable[_EndPoint]) -> None:
    """Bind to the first local end point of the socket's family that can be bound."""
    failure = OSError(errno.EADDRNOTAVAIL, "local_addr has no address of this family")
    if sock.family == socket.AF_INET6:
        # Without it "::" would need the port to be free for IPv4 as well.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for family, name in local:
        if family != sock.family:
            continue
        try:
            sock.bind(name)
        except OSError as error:
            text = f"can't bind to local_addr {format_address(name)}: {error.strerror or error}"
            failure = OSError(error.errno, text)
        else:
            return
    raise failure


def _check_connected(sock: socket.socket, number: int) -> None:
    """Look whether a connect that has ended, with the error `number`, made a connection."""
    if number:
        raise OSError(number, os.strerror(number))
    # A port in the range of ephemeral ports that nobody listens on may be the one the system chose
    # for this very socket; TCP then connects it to itself.
    if sock.getsockname() == sock.getpeername():
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connect_error(address: Address, failures: Sequence[tuple[str, OSError]]) -> OSError:
    """Make one error of all: class and errno of the causes where they agree."""
    target = format_address(address)
    reasons = []
    for name, error in failures:
        reason = error.strerror or str(error)
        reasons.append(reason if name == target else f"{name}: {reason}")
    text = f"can't connect to {target}: {'; '.join(reasons)}"
    numbers = {error.errno for _, error in failures}
    classes = {type(error) for _, error in failures}
    if len(numbers) == 1 and None not in numbers:
        # The constructor picks the subclass that fits the number.
        return OSError(numbers.pop(), text)
    return classes.pop()(text) if len(classes) == 1 else OSError(text)


def _check_delay(delay: float | None) -> None:
    if delay is None:
        return
    if isinstance(delay, bool) or not isinstance(delay, (int, float)):
        raise TypeError(f"happy_eyeballs_delay must be seconds or None, not {delay!r}")
    if not delay >= 0:
        raise ValueError(f"happy_eyeballs_delay must be at least 0 seconds, not {delay!r}")
