"""The state of an application, as data, for those who ask from outside.

Everything here is read from what the arbiter and the scoreboard know; nothing is asked of a
worker, so that a stuck one is shown like any other.
"""

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from pulsar_client.app import scoreboard
from pulsar_client.app.worker import Worker
from pulsar_client.app.worker_handle import WorkerHandle

__all__ = ["of_handle", "of_worker", "prometheus_text", "resident_bytes", "server_info"]


def resident_bytes(pid: int) -> int | None:
    """Give the memory that a process has in use; None where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def of_handle(worker: WorkerHandle) -> dict[str, Any]:
    """Describe a worker process."""
    row = worker.row
    return {
        "idx": worker.idx,
        "pid": worker.pid,
        "state": worker.state,
        "age": round(worker.age, 3),
        "connections": row[scoreboard.CONNECTIONS],
        "accepted": row[scoreboard.ACCEPTED],
        "requests": row[scoreboard.REQUESTS],
        "errors": row[scoreboard.ERRORS],
        "lag": row[scoreboard.LAG] / 1e6,
        "memory": resident_bytes(worker.pid),
    }


def of_worker(worker: Worker, started: float) -> dict[str, Any]:
    """Describe the only process."""
    return {
        "idx": worker.idx,
        "pid": worker.pid,
        "state": "ready",
        "age": round(time.time() - started, 3),
        "connections": worker.connections,
        "accepted": worker.accepted,
        "requests": worker.requests,
        "errors": worker.errors.count,
        "lag": worker.lag,
        "memory": resident_bytes(worker.pid),
    }


def server_info(
    runner: Any,
    *,
    state: str,
    workers: Iterable[Mapping[str, Any]],
    wanted: int,
    past: Mapping[str, int],
    restarts: Mapping[str, int],
    reloads: Mapping[str, int],
) -> dict[str, Any]:
    """Put together what ``info()`` gives.

    Args:
        runner: the arbiter, or the only process.
        state: ``starting``, ``serving``, ``reloading`` or ``stopping``.
        workers: a description of each.
        wanted: how many there should be.
        past: numbers of workers that are gone.
        restarts: how many were replaced, by cause.
        reloads: how many were ``done`` and ``failed``.
    """
    rows = [dict(row) for row in workers]
    totals = {
        name: past.get(name, 0) + sum(row[name] or 0 for row in rows)
        for name in ("accepted", "requests", "errors")
    }
    return {
        "server": {
            "name": runner.application.name,
            "pid": os.getpid(),
            "state": state,
            "uptime_in_seconds": int(time.time() - runner.started),
            "addresses": runner.listeners.urls,
            "concurrency": runner.settings.concurrency,
            "workers": wanted,
            "memory": resident_bytes(os.getpid()),
            "restarts": dict(restarts),
            "reloads": dict(reloads),
        },
        "clients": {"connections": sum(row["connections"] for row in rows), **totals},
        "workers": sorted(rows, key=lambda row: (row["idx"], -row["age"])),
    }


# -- Prometheus ------------------------------------------------------------------------------

_TOTALS = {
    "accepted": "Connections that were accepted.",
    "requests": "Requests that were started.",
    "errors": "Errors that were logged.",
}
_OF_WORKERS = {
    "connections": ("connections", "Open connections."),
    "lag": ("loop_lag_seconds", "By how much the last beat of the event loop was late."),
    "memory": ("resident_memory_bytes", "Memory in use."),
    "age": ("age_seconds", "Time since the start of the process."),
}


def prometheus_text(info: Mapping[str, Any]) -> str:
    """Write what ``info()`` gives in the text format of Prometheus, version 0.0.4."""
    server, clients, workers = info["server"], info["clients"], info["workers"]
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: Iterable[tuple[str, Any]]) -> None:
        full = f"pulsar_{name}"
        lines.extend((f"# HELP {full} {text}", f"# TYPE {full} {kind}"))
        lines.extend(f"{full}{labels} {value}" for labels, value in samples)

    family("uptime_seconds", "gauge", "Time since the start.", [("", server["uptime_in_seconds"])])
    family("workers_wanted", "gauge", "Workers that should run.", [("", server["workers"])])
    states: dict[str, int] = {}
    for row in workers:
        states[row["state"]] = states.get(row["state"], 0) + 1
    family(
        "workers",
        "gauge",
        "Workers that run, by state.",
        [(_labels(state=state), count) for state, count in sorted(states.items())],
    )
    family("connections", "gauge", "Open connections.", [("", clients["connections"])])
    for name, text in _TOTALS.items():
        family(f"{name}_total", "counter", text, [("", clients[name])])
    family(
        "worker_restarts_total",
        "counter",
        "Workers that were replaced, by cause.",
        [(_labels(cause=cause), count) for cause, count in sorted(server["restarts"].items())],
    )
    family(
        "reloads_total",
        "counter",
        "Reloads, by result.",
        [(_labels(result=result), count) for result, count in sorted(server["reloads"].items())],
    )
    for name, (called, text) in _OF_WORKERS.items():
        samples = [
            (_labels(worker=row["idx"], pid=row["pid"]), row[name])
            for row in workers
            if row[name] is not None
        ]
        family(f"worker_{called}", "gauge", text, samples)
    return "\n".join(lines) + "\n"


def _labels(**labels: object) -> str:
    def quoted(value: object) -> str:
        text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{text}"'

    return "{" + ",".join(f"{name}={quoted(value)}" for name, value in labels.items()) + "}"
