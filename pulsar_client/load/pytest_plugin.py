"""A fixture for suites that assert on a load run.

In a ``conftest.py``: ``pytest_plugins = ["pulsar_client.load.pytest_plugin"]``.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from pulsar_client.load.plan import Plan
from pulsar_client.load.result import Result
from pulsar_client.load.running import run
from pulsar_client.load.text_report import text_report
from pulsar_client.load.thresholds import Threshold

__all__ = ["load_test"]


@pytest.fixture
def load_test(
    record_property: Callable[[str, object], None],
) -> Callable[..., Awaitable[Result]]:
    """Run load tests: ``result = await load_test(url, protocol="echo", rate=500)``.

    The keywords are those of :class:`~pulsar_client.load.Plan`, and ``thresholds``.  The report is
    printed, so that pytest shows it where the test fails.
    """

    async def run_load(
        target: str | None = None,
        *,
        thresholds: Iterable[Threshold | str] = (),
        **options: Any,
    ) -> Result:
        result = await run(Plan(target=target, **options), thresholds=thresholds)
        print(text_report(result))  # noqa: T201 - pytest captures it
        record_property("load_p99_seconds", result.p(99))
        return result

    return run_load
