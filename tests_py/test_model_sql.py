"""The SQL is the model: called at random in several sessions, the functions do and answer what it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from machine import LOOK, Machine
from sessions import sessions


@pytest.fixture
def machine(admin_url: str, db_url: str) -> Iterator[type[Machine]]:
    with sessions(admin_url, 1) as (admin,), sessions(db_url, 4) as others:
        Machine.admin, Machine.sessions = admin, others
        admin.ask(LOOK)
        yield Machine


def run(machine: type[Machine], examples: int, steps: int, *, derandomize: bool = True) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)
def test_the_sql_is_the_model(machine: type[Machine]) -> None:
    run(machine, 120, 50)


@pytest.mark.chaos
@pytest.mark.timeout(0)
def test_the_sql_is_the_model_for_long(machine: type[Machine]) -> None:
    run(machine, 5000, 100, derandomize=False)
