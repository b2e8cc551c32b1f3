"""The two windows through which an application is watched: a unix socket, and HTTP.

The unix socket (mode 0600) gives a line of JSON to whoever connects and takes nothing.  The HTTP
side has ``/metrics`` for Prometheus, and ``/livez`` and ``/readyz`` for probes.
"""

import asyncio
import contextlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulsar_client.addresses import parse_address, unix_path
from pulsar_client.app.settings import Settings
from pulsar_client.app.status import prometheus_text

__all__ = ["Windows", "status_directory"]

logger = logging.getLogger("pulsar_client.app")

#: Seconds that one who asks may take.
_PATIENCE = 5.0
#: Who asks beyond so many at once is turned away.
_MOST_AT_ONCE = 32


class Windows:
    """Both of them, as the settings want.

    Args:
        info: gives what is shown.
    """

    def __init__(self, info: Callable[[], dict[str, Any]]) -> None:
        self._info = info
        self._servers: list[asyncio.Server] = []
        self._path: str | None = None
        self._inode = (0, 0)
        self._open = 0

    async def open(self, settings: Settings) -> None:
        """Open them.

        Raises:
            OSError: one can't be opened; a directory of the default that can't be made is no
                reason not to serve, and only logged.
        """
        wanted = settings.status_socket
        if wanted is not None and hasattr(asyncio, "start_unix_server"):
            try:
                path = wanted
                if wanted == "auto":
                    path = str(status_directory(make=True) / f"{os.getpid()}.sock")
                await self._open_status(path)
            except OSError as error:
                if wanted != "auto":
                    raise OSError(
                        f"status_socket {wanted!r}: {error.strerror or error}"
                    ) from error
                logger.warning("no status socket: %s", error)
        if settings.prometheus_bind is not None:
            await self._open_http(settings.prometheus_bind)

    async def _open_status(self, path: str) -> None:
        before = os.umask(0o177)  # never open to others, not even for a moment
        try:
            server = await asyncio.start_unix_server(self._tell_status, path)
        finally:
            os.umask(before)
        self._servers.append(server)
        self._path = path
        found = os.stat(path)
        self._inode = (found.st_dev, found.st_ino)

    async def _open_http(self, bind: str) -> None:
        address = parse_address(bind)
        try:
            path = unix_path(address)
            if path is not None:
                server = await asyncio.start_unix_server(self._answer_http, path)
            else:
                assert isinstance(address, tuple)
                server = await asyncio.start_server(
                    self._answer_http, address[0] or None, address[1], limit=8192
                )
        except OSError as error:
            raise OSError(f"prometheus_bind {bind!r}: {error.strerror or error}") from error
        self._servers.append(server)
        for sock in server.sockets:
            logger.info("metrics on http://%s:%d/metrics", *sock.getsockname()[:2])

    async def _tell_status(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._reply(writer, json.dumps(self._info()).encode() + b"\n")

    async def _answer_http(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._open += 1
        try:
            if self._open > _MOST_AT_ONCE:
                return
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            await self._reply(writer, self._page(head))
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # what bad peers do is no event here
        finally:
            self._open -= 1
            writer.close()

    def _page(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        code, text = "404 Not Found", "there are /metrics, /livez and /readyz\n"
        if method not in ("GET", "HEAD"):
            code, text = "405 Method Not Allowed", "only GET\n"
        elif path == "/metrics":
            code, text = "200 OK", prometheus_text(self._info())
        elif path == "/livez":
            code, text = "200 OK", "alive\n"
        elif path == "/readyz":
            info = self._info()
            ready = sum(worker["state"] == "ready" for worker in info["workers"])
            if info["server"]["state"] in ("serving", "reloading") and ready:
                code, text = "200 OK", f"{ready} workers are ready\n"
            else:
                code, text = "503 Service Unavailable", f"{info['server']['state']}\n"
        body = text.encode()
        kind = "text/plain; version=0.0.4; charset=utf-8"
        top = (
            f"HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return top.encode() + (b"" if method == "HEAD" else body)

    async def _reply(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                writer.write(data)
                await writer.drain()
        writer.close()

    def close(self) -> None:
        """Close both; the file of the unix socket goes."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                found = os.stat(self._path)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.unlink(self._path)
        for server in self._servers:
            server.close()
        self._servers.clear()


def status_directory(*, make: bool = False) -> Path:
    """Give the directory of the status sockets of this user.

    Raises:
        OSError: it can't be made, or belongs to somebody else.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        path = Path(base) / "pulsar-client"
    else:
        path = Path(tempfile.gettempdir()) / f"pulsar-client-{os.getuid()}"
    if make:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
        # In a directory that others can write to, anybody may have made it.
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise OSError(f"{path} belongs to somebody else")
        path.chmod(0o700)
    return path
