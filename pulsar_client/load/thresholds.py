"""What a run must reach: ``p99(response)<20ms``, ``errors<0.1%``, ``rate>=0.99*target``."""

import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from pulsar_client.exceptions import ConfigError
from pulsar_client.load.histogram import Histogram
from pulsar_client.load.quantities import duration, format_duration, rate
from pulsar_client.load.recorder import METRICS, OTHER_METRICS, Counts

__all__ = ["Measured", "Outcome", "Threshold"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(
    r"\s*(?P<what>p\d+(?:\.\d+)?|max|mean|errors|timeouts|dropped|rate)"
    r"\s*(?:\(\s*(?P<metric>\w+)\s*(?:,\s*(?P<label>[^)]+?)\s*)?\))?"
    r"\s*(?P<operator><=|>=|<|>)\s*(?P<value>.+?)\s*"
)
_METRICS = (*METRICS, *OTHER_METRICS)
_COUNTED = ("errors", "timeouts", "dropped")


class Measured(Protocol):
    """What a threshold asks of a result."""

    counts: Counts

    @property
    def rate(self) -> float:
        """Requests answered well, a second."""

    @property
    def planned_rate(self) -> float:
        """Requests that were due, a second."""

    def histogram(self, metric: str, label: str | None = None) -> Histogram:
        """Durations of a metric, of one scenario or of all."""


@dataclass(frozen=True)
class Outcome:
    """How a threshold ended.

    Attributes:
        text: of the threshold.
        value: what was measured.
        limit: what it was compared with.
        ok: whether it holds.
        shown: the value for people.
    """

    text: str
    value: float
    limit: float
    ok: bool
    shown: str

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return vars(self).copy()


@dataclass(frozen=True)
class Threshold:
    """One condition; made by :meth:`parse`.

    Attributes:
        text: as it was given.
        what: a quantile, ``max``, ``mean``, ``errors``, ``timeouts``, ``dropped`` or ``rate``.
        metric: of which durations, or "".
        label: of which scenario; None for all.
        operator: ``<``, ``<=``, ``>`` or ``>=``.
        limit: seconds, a share from 0 to 1, a number, or requests a second.
        relative: whether the limit is a share: of the requests, or of the planned rate.
    """

    text: str
    what: str
    metric: str
    label: str | None
    operator: str
    limit: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """Read a threshold.

        ``p99(response)<20ms``, ``p99.9(service,get)<=1s``, ``max(pool_wait)<50ms``,
        ``errors<0.1%``, ``timeouts<5``, ``dropped<1%``, ``rate>900``, ``rate>=0.99*target``.

        Raises:
            ConfigError: it has another form.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"threshold {text!r} must be like p99(response)<20ms, errors<0.1% or "
                "rate>=0.99*target"
            )
        what, metric, value = found["what"], found["metric"], found["value"]
        try:
            if what == "rate" or what in _COUNTED:
                if metric is not None:
                    raise ConfigError(f"{what} takes no ({metric})")
                limit, relative = _share_or_number(what, value)
                metric = ""
            else:
                metric = metric or "response"
                if metric not in _METRICS:
                    raise ConfigError(f"{metric!r} is none of {', '.join(_METRICS)}")
                if found["label"] is not None and metric in OTHER_METRICS:
                    raise ConfigError(f"{metric} is of the whole run and takes no label")
                if what[0] == "p" and float(what[1:]) > 100:
                    raise ConfigError(f"{what} is above p100")
                limit, relative = duration(value), False
        except ConfigError as exc:
            raise ConfigError(f"threshold {text!r}: {exc}") from exc
        return cls(text.strip(), what, metric, found["label"], found["operator"], limit, relative)

    def check_label(self, labels: Collection[str]) -> None:
        """Refuse a label that the run won't have, before it begins.

        Raises:
            ConfigError: there is no such scenario.
        """
        if self.label is not None and self.label not in labels:
            raise ConfigError(
                f"threshold {self.text!r}: no scenario has the label {self.label!r}, expected one "
                f"of {', '.join(labels)}"
            )

    def judge(self, result: Measured) -> Outcome:
        """Compare it with a result."""
        limit = self.limit
        if self.what == "rate":
            value = result.rate
            limit = limit * result.planned_rate if self.relative else limit
            shown = f"{value:.1f}/s"
        elif self.what in _COUNTED:
            value = float(self._counted(result))
            shown = f"{value:.0f}"
            if self.relative:
                value /= max(result.counts.scheduled, 1)
                shown = f"{value:.3%}"
        else:
            histogram = result.histogram(self.metric, self.label)
            if self.what == "max":
                value = histogram.max
            elif self.what == "mean":
                value = histogram.mean
            else:
                value = histogram.quantile(float(self.what[1:]) / 100)
            shown = format_duration(value)
            if not histogram.count:  # nothing was measured: nothing is proven
                return Outcome(self.text, value, limit, False, "nothing measured")
        return Outcome(self.text, value, limit, _OPERATORS[self.operator](value, limit), shown)

    def _counted(self, result: Measured) -> int:
        counts = result.counts
        if self.what == "errors":  # a time-out is one as well
            return counts.error + counts.timeout
        return counts.timeout if self.what == "timeouts" else counts.dropped


def _share_or_number(what: str, value: str) -> tuple[float, bool]:
    """Read ``0.1%``, ``0.99*target`` or a number."""
    if what == "rate":
        if value.endswith("*target"):
            return float(rate(value.removesuffix("*target"))), True
        return rate(value), False
    number = value.removesuffix("%").strip()
    try:
        limit = float(number)
    except ValueError:
        raise ConfigError(f"{value!r} is neither a number nor a percentage") from None
    return (limit / 100, True) if value.endswith("%") else (limit, False)
