"""Schedules: known before the run, from a seed, and the same in parts."""

import math
import random
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulsar_client import ConfigError, load
from pulsar_client.load.schedule import MAX_ARRIVALS, Stage, arrivals, choices, planned


def test_l1_constant_arrivals_are_regular() -> None:
    found = arrivals([Stage(2.0, 500)], poisson=False, seed=1)
    assert len(found) == 1000
    assert found[0] == 0.0
    assert all(abs(moment - k / 500) < 1e-9 for k, moment in enumerate(found))


def test_l1_a_ramp_rises_evenly() -> None:
    found = arrivals([Stage(10.0, 0, 100)], poisson=False, seed=1)
    assert len(found) == 500
    # Up to the moment t there are 5 t^2 arrivals.
    assert all(abs(5 * moment**2 - k) < 1e-6 for k, moment in enumerate(found))
    down = arrivals([Stage(10.0, 100, 0)], poisson=False, seed=1)
    assert len(down) == 500
    assert abs(down[1] - 0.01) < 1e-4


def test_l1_stages_follow_each_other() -> None:
    stages = [Stage(1.0, 100), Stage(2.0, 100, 300), Stage(1.0, 0), Stage(1.0, 10)]
    found = arrivals(stages, poisson=False, seed=1)
    counted = [sum(a <= moment < b for moment in found) for a, b in ((0, 1), (1, 3), (3, 4))]
    assert counted == [100, 400, 0]
    assert len(found) == planned(stages) == 510


def test_l1_poisson_arrivals_are_seeded_and_exponential() -> None:
    stages = [Stage(50.0, 200)]
    found = arrivals(stages, poisson=True, seed=7)
    assert found == arrivals(stages, poisson=True, seed=7)
    assert found != arrivals(stages, poisson=True, seed=8)
    assert abs(len(found) - 10_000) < 500
    gaps = [b - a for a, b in pairwise(found)]
    # The share of the gaps above t is e^(-200 t).
    for t in (0.001, 0.005, 0.01):
        share = sum(gap > t for gap in gaps) / len(gaps)
        assert abs(share - math.exp(-200 * t)) < 0.02


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 3.0), st.floats(0, 200), st.one_of(st.none(), st.floats(0, 200))),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.integers(1, 7),
)
def test_l1_the_shares_of_workers_are_the_plan(
    parts: list[tuple[float, float, float | None]], poisson: bool, count: int
) -> None:
    stages = [Stage(*part) for part in parts]
    whole = arrivals(stages, poisson=poisson, seed=3)
    shares = [
        arrivals(stages, poisson=poisson, seed=3, index=index, count=count)
        for index in range(count)
    ]
    assert sorted(moment for share in shares for moment in share) == list(whole)
    assert list(whole) == sorted(whole)
    total = sum(stage.duration for stage in stages)
    assert all(0 <= moment <= total + 1e-9 for moment in whole)
    if not poisson:
        assert abs(len(whole) - planned(stages)) <= 1


def test_scenarios_are_chosen_by_weight() -> None:
    found = choices([9, 1], seed=5, number=10_000)
    assert found == choices([9, 1], seed=5, number=10_000)
    assert abs(found.count(0) - 9000) < 200
    assert choices([3], seed=5, number=4) == bytes(4)
    with pytest.raises(ConfigError, match="257 scenarios"):
        choices([1] * 257, seed=1, number=1)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ((0.0, 5), "duration is 0.0, expected seconds above 0"),
        ((1.0, -5), "rate is -5"),
        ((1.0, 5, math.inf), "rate is inf"),
    ],
)
def test_a_stage_that_makes_no_sense(stage: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Stage(*stage)


def test_a_schedule_that_does_not_fit_into_memory() -> None:
    with pytest.raises(ConfigError, match=f"at most {MAX_ARRIVALS}"):
        arrivals([Stage(3600.0, 1e6)], poisson=False, seed=1)


def test_random_is_not_the_global_one() -> None:
    random.seed(1)
    first = Random(1).random()
    arrivals([Stage(1.0, 10)], poisson=True, seed=1)
    assert random.random() == first


def test_a_duration_is_that_of_the_stages_or_else_ten_seconds() -> None:
    common: dict[str, Any] = {"target": "tcp://127.0.0.1:1", "protocol": "echo"}
    plain = load.Plan(**common, rate=5)
    assert plain.measured == plain.as_json()["duration"] == 10.0
    assert load.Plan.from_json(plain.as_json()).measured == 10.0
    staged = load.Plan(**common, stages=[Stage(1.0, 5), Stage(2.0, 7)])
    assert staged.measured == 3.0
    assert staged.as_json()["duration"] is None
    assert load.Plan.from_json(staged.as_json()).stages == staged.stages
    with pytest.raises(ConfigError, match="duration and stages exclude each other"):
        load.Plan(**common, stages=[Stage(1.0, 5)], duration=10)
