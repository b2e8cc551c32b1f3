"""A result as one HTML page: no script, and nothing to be fetched from elsewhere."""

import math
from collections.abc import Iterable
from html import escape

from pulsar_client.load.charts import Axis, Line, chart, log_ticks, ticks
from pulsar_client.load.histogram import Histogram
from pulsar_client.load.quantities import format_duration
from pulsar_client.load.result import Result, summary
from pulsar_client.load.text_report import model

__all__ = ["html_report"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff;
       max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.1em; margin-top: 2em; }
.what { color: #57677a; margin-top: .2em; }
.verdict { padding: .5em .8em; border-radius: 4px; font-weight: 600; }
.good { background: #e3f4e6; color: #14532d; } .bad { background: #fde4e1; color: #8f1d12; }
.note { color: #57677a; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25em .6em; border-bottom: 1px solid #e3e8ee; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
svg { width: 100%; height: auto; margin-top: 1em; }
.title { font-weight: 600; font-size: 13px; fill: #1d2733; }
.tick { font-size: 11px; fill: #57677a; } .grid { stroke: #e8ecf1; }
.mark { stroke: #b7791f; stroke-dasharray: 4 3; } .marked { font-size: 11px; fill: #8a5a12; }
"""

_COLUMNS = ("p50", "p90", "p95", "p99", "p99.9", "max", "mean")
# Quantiles of the curve: each step halves what is beyond.
_CURVE = [1 - 0.5 ** (step / 4) for step in range(1, 80)]
_NINES = [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")]


def html_report(result: Result) -> str:
    """Write the page."""
    target = str(result.plan["target"] or result.plan["scenario_file"] or "scenarios")
    charts = [_percentile_curve(result), _over_time(result), _rate(result)]
    body = [
        f"<h1>{escape(target)}</h1>",
        f'<p class="what">{result.loop} loop, {escape(model(result))}'
        f" · started {escape(result.started)}{_warmup(result)}</p>",
        _verdict(result),
        *(f'<p class="note">{escape(text)}</p>' for text in result.warnings),
        "<h2>Requests</h2>",
        _requests(result),
        f"<h2>Times ({result.loop} loop)</h2>",
        _times(result),
        *charts,
        _causes(result),
        _thresholds(result),
        _clients(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Load test of {escape(target)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _warmup(result: Result) -> str:
    warmup = result.plan["warmup"]
    return f" · warm-up of {warmup:g} s left out" if warmup else ""


def _verdict(result: Result) -> str:
    if result.invalid:
        reasons = "; ".join(result.invalid)
        return f'<p class="verdict bad">INVALID: {escape(reasons)}</p>'
    if result.failure:
        return f'<p class="verdict bad">{escape(result.failure)}</p>'
    if not result.passed:
        return '<p class="verdict bad">a threshold was missed</p>'
    text = "interrupted" if result.interrupted else "valid"
    return f'<p class="verdict good">{text}</p>'


def _requests(result: Result) -> str:
    counts = result.counts.as_json()
    rates = {"due": f"{result.planned_rate:.1f}/s", "answered": f"{result.rate:.1f}/s"}
    head = [name.replace("_", " ") for name in counts] + list(rates)
    return _table(head, [[str(value) for value in counts.values()] + list(rates.values())])


def _times(result: Result) -> str:
    rows: list[tuple[str, Histogram]] = [
        ("response time", result.histogram("response")),
        ("service time", result.histogram("service")),
        ("pool wait", result.histogram("pool_wait")),
        ("connect time", result.histogram("connect")),
    ]
    if result.open:
        rows.append(("dispatched late by", result.histogram("lateness")))
    if len(result.labels) > 1:
        rows += [
            (f"response of {name}", result.histogram("response", name)) for name in result.labels
        ]
    cells = []
    for name, histogram in rows:
        figures = summary(histogram)
        cells.append(
            [name, *(format_duration(figures[column]) for column in _COLUMNS)]
            + [f"{figures['count']:.0f}"]
        )
    return _table(["", *_COLUMNS, "count"], cells)


def _percentile_curve(result: Result) -> str:
    response, service = result.histogram("response"), result.histogram("service")
    most = max(response.count, 1)
    # Beyond one request in `most` there is nothing to be seen.
    wanted = [quantile for quantile in _CURVE if (1 - quantile) * most >= 0.5] or [0.5]
    lines = []
    lowest, highest = math.inf, 0.0
    for name, colour, histogram in (
        ("service time", "#7c93b2", service),
        ("response time", "#c2410c", response),
    ):
        if histogram.count:
            values = histogram.quantiles(wanted)
            lowest, highest = min(lowest, values[0]), max(highest, values[-1])
            points = [(1 / (1 - q), value) for q, value in zip(wanted, values, strict=True)]
            lines.append(Line(name, colour, points))
    end = 1 / (1 - wanted[-1])
    labels = [(1 / (1 - q), text) for q, text in _NINES if 1 / (1 - q) <= end * 1.01]
    x = Axis(1 / (1 - wanted[0]), max(end, 2.0), labels, log=True)
    y = log_ticks(lowest if lines else 1e-3, highest, format_duration)
    return chart("Percentiles", x, y, lines)


def _over_time(result: Result) -> str:
    points = [point for point in result.points if point.response]
    names = (("max", "#e5b8a5"), ("p99", "#c2410c"), ("p50", "#2563a8"))
    lines, highest = [], 0.0
    values = [point.quantiles(1.0, 0.99, 0.5) for point in points]
    for column, (name, colour) in enumerate(names):
        line = [
            ((p.start + p.end) / 2, value[column]) for p, value in zip(points, values, strict=True)
        ]
        highest = max([highest, *(value for _, value in line)])
        lines.append(Line(name, colour, line))
    return chart(
        "Response time of the requests that ended at a moment",
        _time_axis(result),
        ticks(highest, format_duration),
        lines,
        _marks(result),
    )


def _rate(result: Result) -> str:
    lines, highest = [], 0.0
    # The last point may be so short that its rate is none.
    usual = max((point.seconds for point in result.points), default=0.0)
    points = [point for point in result.points if point.seconds > usual / 4]
    for name, colour, filled in (
        ("due", "#9aa7b5", False),
        ("answered", "#2563a8", False),
        ("failed", "#b91c1c", True),
    ):
        line = []
        for point in points:
            counts = point.counts
            number = {
                "due": counts.scheduled,
                "answered": counts.ok,
                "failed": counts.error + counts.timeout + counts.dropped,
            }[name]
            line.append(((point.start + point.end) / 2, number / point.seconds))
        highest = max([highest, *(value for _, value in line)])
        lines.append(Line(name, colour, line, filled))
    y = ticks(highest, lambda value: f"{value:g}/s")
    return chart("Rate", _time_axis(result), y, lines, _marks(result))


def _time_axis(result: Result) -> Axis:
    end = max((point.end for point in result.points), default=1.0)
    axis = ticks(end, lambda seconds: f"{seconds:g} s", wanted=10)
    return Axis(0.0, end, [label for label in axis.labels if label[0] <= end])


def _marks(result: Result) -> list[tuple[float, str]]:
    marks = [(mark.at, mark.text) for mark in result.marks]
    if result.plan["warmup"]:
        marks.insert(0, (result.plan["warmup"], "end of warm-up"))
    return marks


def _causes(result: Result) -> str:
    if not result.causes:
        return ""
    rows = [[cause, str(n), result.samples.get(cause, "")] for cause, n in result.causes.items()]
    return "<h2>Errors</h2>" + _table(["cause", "requests", "for example"], rows)


def _thresholds(result: Result) -> str:
    if not result.outcomes:
        return ""
    rows = [[o.text, "pass" if o.ok else "FAIL", o.shown] for o in result.outcomes]
    return "<h2>Thresholds</h2>" + _table(["threshold", "", "measured"], rows)


def _clients(result: Result) -> str:
    rows = [
        [
            str(health.worker),
            f"{health.cpu:.0%}",
            format_duration(health.lag_p99),
            format_duration(health.lag_max),
        ]
        for health in result.healths
    ]
    head = ["worker", "of a core", "loop late, p99", "at worst"]
    return "<h2>The client itself</h2>" + _table(head, rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
