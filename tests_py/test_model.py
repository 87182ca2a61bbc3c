"""Every interleaving of two workers and a person over one job, of a lane, and of a key, in models."""

from __future__ import annotations

import pytest

import key_model
import lane_model
from interleavings import Search
from model import VARIANTS, WORK_VARIANTS

WORK = Search(claims=4, people=False, leases=True)


def test_no_interleaving_breaks_a_rule() -> None:
    states, trace = Search().run()
    assert trace == []
    assert states > 10_000


def test_workers_alone_never_run_a_job_twice_at_once_or_too_often() -> None:
    states, trace = WORK.run()
    assert trace == []
    assert states > 1000


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_mistake_of_other_queues_is_found(variant: str) -> None:
    rule, what = VARIANTS[variant]
    _, trace = Search(variant, claims=2).run()
    assert trace, what
    assert trace[-1].startswith(rule), trace


@pytest.mark.parametrize("variant", WORK_VARIANTS)
def test_each_mistake_of_workers_is_found(variant: str) -> None:
    rule, what = WORK_VARIANTS[variant]
    _, trace = Search(variant, claims=4, people=False, leases=True).run()
    assert trace, what
    assert trace[-1].startswith(rule), trace


def test_a_lane_runs_one_job_at_a_time_and_never_falls_asleep() -> None:
    # Workers alone need no sweep; what a person's transaction leaves asleep, the sweep wakes.
    for person in (False, True):
        states, trace = lane_model.search(person=person)
        assert trace == []
        assert states > 50


@pytest.mark.parametrize("variant", lane_model.VARIANTS)
def test_each_mistake_about_lanes_is_found(variant: str) -> None:
    rule, what = lane_model.VARIANTS[variant]
    _, trace = lane_model.search(variant, person=rule == "I11")
    assert trace, what
    assert trace[-1].startswith(rule), trace


def test_a_key_makes_one_job_however_often_it_is_sent() -> None:
    states, trace = key_model.search()
    assert trace == []
    assert states > 20


@pytest.mark.parametrize("variant", key_model.VARIANTS)
def test_each_mistake_about_keys_is_found(variant: str) -> None:
    rule, what = key_model.VARIANTS[variant]
    _, trace = key_model.search(variant)
    assert trace, what
    assert trace[-1].startswith(rule), trace


@pytest.mark.chaos
@pytest.mark.timeout(0)
def test_no_longer_interleaving_breaks_a_rule() -> None:
    for search in (Search(claims=4), Search(claims=6, people=False, leases=True)):
        states, trace = search.run()
        assert trace == []
        assert states > 100_000
