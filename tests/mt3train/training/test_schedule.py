"""The learning rate and the end of a run, by updates and by the clock."""

import dataclasses

import pytest

from mt3train.config import Config, OptimConfig
from mt3train.training.resume import Progress
from mt3train.training.schedule import learning_rate, total_steps


def config(steps=1000, hours=0.0, **optim):
    return dataclasses.replace(Config(), steps=steps, hours=hours, optim=OptimConfig(**optim))


def at(step, seconds=0.0):
    return Progress({}, {}, step=step, seconds=seconds)


def test_the_rate_rises_linearly_and_stays_or_falls_to_a_tenth():
    constant = config(lr=1e-3)
    assert learning_rate(constant, at(0)) == learning_rate(constant, at(10**6)) == 1e-3
    warm = config(lr=1.0, warmup_steps=4)
    assert [learning_rate(warm, at(s)) for s in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1, 1, 1]
    cosine = config(12, lr=1.0, warmup_steps=2, decay="cosine")
    rates = [learning_rate(cosine, at(s)) for s in (0, 2, 7, 12, 20)]
    assert rates == pytest.approx([0.5, 1.0, 0.55, 0.1, 0.1])


def test_hours_end_a_run_at_its_own_speed():
    timed = config(1_000_000, hours=2.0)
    assert total_steps(timed, at(0)) == 1_000_000
    assert total_steps(timed, at(50, 900.0)) == 400  # an eighth of the time
    assert total_steps(timed, at(50, 7199.9)) == 51
    assert total_steps(timed, at(50, 7200.0)) == 50
    assert total_steps(config(300, hours=2.0), at(50, 900.0)) == 300


def test_the_cosine_follows_the_clock_when_the_speed_changes():
    timed = config(1_000_000, hours=1.0, lr=1.0, decay="cosine")
    for step in (10, 1000):
        rates = [learning_rate(timed, at(step, seconds)) for seconds in (1, 1800, 3600)]
        assert rates == pytest.approx([1.0, 0.55, 0.1], abs=2e-3)
