"""``python -m pulsar_client status``: how the servers of this machine are.

It reads the status socket that each server has; it can only look.
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pulsar_client.app.watching import status_directory

__all__ = ["main", "read_status", "report"]

_PATIENCE = 5.0
_MOST = 2**24


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0 if there was something to show, even if its reader has gone; 1 if no server answered,
        2 for wrong use.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pulsar_client status",
        description="Show how a server is: its workers, connections, requests, restarts.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        help="the server's status_socket; without it all servers of this user that have the "
        "default one are shown",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each server")
    options = parser.parse_args(arguments)
    paths = [options.path] if options.path else _known_paths()
    shown = 0
    for path in paths:
        try:
            info = read_status(path)
        except (OSError, ValueError) as error:
            if options.path:
                sys.stderr.write(f"no server answers on {path}: {error}\n")
            continue
        shown += 1
        if not _show(json.dumps(info) + "\n" if options.json else report(info)):
            break
    if not shown and not options.path:
        sys.stderr.write(f"no server runs that has its socket in {status_directory()}\n")
    return 0 if shown else 1


def _show(text: str) -> bool:
    """Write it to standard output; tell whether somebody reads there."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer is written when the interpreter ends, and must not fail.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True


def _known_paths() -> list[str]:
    directory = status_directory()
    return [str(path) for path in sorted(directory.glob("*.sock"))] if directory.is_dir() else []


def read_status(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Ask a server how it is.

    Raises:
        OSError: nobody answers there.
        ValueError: something else than a server answers.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(os.fspath(path))
        with sock.makefile("rb") as stream:
            line = stream.readline(_MOST)
    info = json.loads(line)
    if not isinstance(info, dict) or "server" not in info:
        raise ValueError("it is no server of this kind")
    return info


def report(info: Mapping[str, Any]) -> str:
    """Write it for people."""
    server, clients = info["server"], info["clients"]
    lines = [
        f"{server['name']} (pid {server['pid']}) {server['state']} for "
        f"{_duration(server['uptime_in_seconds'])} on {', '.join(server['addresses'])}",
        f"  {clients['connections']} connections, {clients['accepted']} accepted, "
        f"{clients['requests']} requests, {clients['errors']} errors",
    ]
    for what in ("restarts", "reloads"):
        counts = ", ".join(f"{count} {cause}" for cause, count in server[what].items() if count)
        lines.append(f"  {what}: {counts or 'none'}")
    head = ("worker", "pid", "state", "age", "connections", "requests", "errors", "lag", "memory")
    rows = [head] + [
        (
            str(row["idx"]),
            str(row["pid"]),
            row["state"],
            _duration(row["age"]),
            str(row["connections"]),
            str(row["requests"]),
            str(row["errors"]),
            f"{row['lag'] * 1000:.1f} ms",
            "?" if row["memory"] is None else f"{row['memory'] / 2**20:.1f} MiB",
        )
        for row in info["workers"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        lines.append("  " + "  ".join(cells))
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
