"""Load tests one can trust: open loops, honest percentiles, any protocol of this library.

::

    result = await load.run(load.Plan(target="tcp://127.0.0.1:8060", protocol="echo", rate=1000))
    assert result.valid and result.p(99) < 0.020
"""

from pulsar_client.load.histogram import Histogram
from pulsar_client.load.plan import Limits, Plan
from pulsar_client.load.result import Result
from pulsar_client.load.running import run
from pulsar_client.load.scenarios import Context, Scenario, scenario, setup
from pulsar_client.load.schedule import Stage
from pulsar_client.load.session import Stop, TargetUnreachable
from pulsar_client.load.thresholds import Threshold

__all__ = [
    "Context",
    "Histogram",
    "Limits",
    "Plan",
    "Result",
    "Scenario",
    "Stage",
    "Stop",
    "TargetUnreachable",
    "Threshold",
    "run",
    "scenario",
    "setup",
]
