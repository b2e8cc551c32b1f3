"""A result as text: for a terminal or a log, and as a table of its course."""

import csv
import io
from collections.abc import Iterator

from pulsar_client.load.quantities import format_duration
from pulsar_client.load.result import Result, summary

__all__ = ["csv_report", "model", "text_report"]

_COLUMNS = ("p50", "p90", "p95", "p99", "p99.9", "max", "mean")


def text_report(result: Result) -> str:
    """Write a report of some thirty lines."""
    return "\n".join(_lines(result)) + "\n"


def csv_report(result: Result) -> str:
    """Write the course of a run as CSV: one line for each point of the time line."""
    out = io.StringIO()
    rows = [point.as_json() for point in result.points]
    names = [name for name in (rows[0] if rows else {}) if name != "response"]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _lines(result: Result) -> Iterator[str]:
    yield from _head(result)
    yield ""
    yield from _requests(result)
    yield ""
    yield from _times(result)
    for health in result.healths:
        yield (
            f"client     worker {health.worker}: {health.cpu:.0%} of a core, loop late by "
            f"{format_duration(health.lag_p99)} at p99, {format_duration(health.lag_max)} at worst"
        )
    for mark in result.marks:
        yield f"mark       {mark.at:.2f} s: {mark.text}"
    for outcome in result.outcomes:
        yield f"threshold  {'pass' if outcome.ok else 'FAIL'}: {outcome.text} ({outcome.shown})"


def _head(result: Result) -> Iterator[str]:
    plan = result.plan
    target = plan["target"] or plan["scenario_file"] or "scenarios"
    yield f"{target}: {result.loop} loop, {model(result)}"
    if plan["warmup"]:
        yield f"warm-up of {plan['warmup']:g} s before, in none of the numbers"
    if result.interrupted:
        yield f"interrupted after {result.elapsed:.1f} s"
    if result.failure:
        yield f"FAIL: {result.failure}"
    for reason in result.invalid:
        yield f"INVALID: {reason}"
    for warning in result.warnings:
        yield f"note: {warning}"


def _requests(result: Result) -> Iterator[str]:
    counts = result.counts
    yield (
        f"requests   scheduled {counts.scheduled} = sent {counts.sent} + dropped "
        f"{counts.dropped} + queued {counts.queued}"
    )
    yield (
        f"           sent {counts.sent} = ok {counts.ok} + error {counts.error} + timeout "
        f"{counts.timeout} + in flight {counts.in_flight}"
    )
    wanted = f", {result.planned_rate:.1f}/s were due" if result.open else ""
    yield f"rate       {result.rate:.1f}/s answered{wanted} in {result.elapsed:.2f} s"
    for cause, number in result.causes.items():
        yield f"error      {number} x {cause}   e.g. {result.samples.get(cause, '')[:100]}"


def _times(result: Result) -> Iterator[str]:
    yield f"{'':<24}" + "".join(f"{name:>10}" for name in _COLUMNS) + f"{'count':>10}"
    yield _row(f"response time ({result.loop})", summary(result.histogram("response")))
    yield _row("service time", summary(result.histogram("service")))
    yield _row("pool wait", summary(result.histogram("pool_wait")))
    yield _row("connect time", summary(result.histogram("connect")))
    if result.open:
        yield _row("dispatched late by", summary(result.histogram("lateness")))
    if len(result.labels) > 1:
        for label in result.labels:
            figures = summary(result.histogram("response", label))
            yield _row(f"response of {label}"[:24], figures)


def model(result: Result) -> str:
    """Say in few words when requests were sent."""
    plan = result.plan
    if not result.open:
        return f"{plan['in_flight']} in flight for {plan['duration']:g} s"
    if plan["stages"]:
        parts = [
            f"{rate:g}{'' if to is None else f'..{to:g}'}/s for {seconds:g} s"
            for seconds, rate, to in plan["stages"]
        ]
        return f"{plan['arrivals']} arrivals, {', '.join(parts)}"
    return f"{plan['arrivals']} arrivals, {plan['rate']:g}/s for {plan['duration']:g} s"


def _row(name: str, figures: dict[str, float]) -> str:
    cells = "".join(f"{format_duration(figures[column]):>10}" for column in _COLUMNS)
    return f"{name:<24}{cells}{figures['count']:>10.0f}"
