"""``python -m benchmarks.tls_memory``: what an idle TLS connection keeps of a server's memory.

Each server is a child of this command, on a free port of the loopback, and has had no other
connections.  What counts is the resident memory before and after.
"""

import argparse
import json
import platform
import ssl
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, socket

from benchmarks import bare
from benchmarks.__main__ import machine, version
from benchmarks.connections import WARM_UP, dial, raise_file_limit, resident
from benchmarks.loops import available
from benchmarks.server_process import ServerProcess

SERVERS = {"hand-written": "bare", "TcpServer": "library"}
SMALL, LARGE = 64, 60_000
COLUMNS = ("plain", "TLS", f"TLS after a request of {LARGE} bytes")


def exchange(sock: socket, size: int) -> None:
    """A request of so many bytes, which comes back."""
    message = b"." * size + bare.SEPARATOR
    sock.sendall(message)
    while not message.endswith(sock.recv(len(message))):
        pass


def measure(kind: str, loop: str, count: int, wrap: Callable[[socket], socket]) -> list[float]:
    """Bytes a connection: idle after a small request, then idle again after a large one."""
    with ExitStack() as stack, ServerProcess(kind, loop, None) as server:

        def connect() -> socket:
            sock = stack.enter_context(wrap(dial(server.address)))
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # a request is several records
            exchange(sock, SMALL)
            return sock

        warm = [connect() for _ in range(WARM_UP)]
        empty = resident(server.pid)
        connections = [connect() for _ in range(count)]
        small = resident(server.pid)
        for sock in warm:
            exchange(sock, LARGE)
        used = resident(server.pid)
        for sock in connections:
            exchange(sock, LARGE)
        return [(small - empty) / count, (small - empty + resident(server.pid) - used) / count]


def secured() -> Callable[[socket], socket]:
    """What makes a TLS connection of a plain one, without a look at the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket


def row(kind: str, loop: str, count: int) -> list[float]:
    """The figures of one server, by column."""
    plain, _ = measure(kind, loop, count, lambda sock: sock)
    return [plain, *measure(f"tls-{kind}", loop, count, secured())]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls_memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer connections, one round")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything there")
    options = parser.parse_args()
    if sys.platform != "linux" or find_spec("trustme") is None:
        print("it needs Linux and trustme", file=sys.stderr)
        return 3
    raise_file_limit()
    count, rounds = (50, 1) if options.quick else (500, 3)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "python": sys.version,
        "openssl": ssl.OPENSSL_VERSION,
        "uvloop": version("uvloop"),
        "connections": count,
    }
    print(f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, uvloop {report['uvloop']}")
    print(f"KiB a connection, {count} of them, median of {rounds}")
    print("\n| | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|", flush=True)
    results = {}
    for loop in available():
        for name, kind in SERVERS.items():
            found = [row(kind, loop, count) for _ in range(rounds)]
            results[f"{loop}, {name}"] = found
            cells = (
                f"{statistics.median(column) / 1024:.0f}" for column in zip(*found, strict=True)
            )
            print(f"| {loop}, {name} | " + " | ".join(cells) + " |", flush=True)
    if options.json is not None:
        text = json.dumps(report | {"results": results}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
