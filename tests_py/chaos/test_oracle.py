"""The oracle and the readers of logs notice what they are there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

import oracle
from chaos import logs
from oracle import Violation

Conn = psycopg.Connection[Any]

# What the witnesses say after one job has succeeded, changed so that a rule is broken.
EVENT = "INSERT INTO public.event (job_id, run_id, lock, was, is_now, crashes) VALUES"
PUT_BACK = "INSERT INTO pljobs.job_event (job_id, at, attempt, kind) SELECT 1, now(), 1,"
BROKEN = [
    ("I1", f"{EVENT} (1, 1, NULL, 'succeeded', 'failed', 0)"),
    ("I1", "SELECT pljobs.defer_job('task')"),
    ("I2", "UPDATE public.event SET was = 'todo', is_now = 'succeeded' WHERE is_now = 'succeeded'"),
    ("I2", f"{EVENT} (1, 2, NULL, 'doing', 'todo', 0)"),
    ("I3", "UPDATE public.event SET run_id = run_id + 1 WHERE is_now = 'succeeded'"),
    ("I4", "DELETE FROM public.side WHERE what = 'end'"),
    ("I4", "INSERT INTO public.side (job_id, run_id, what) SELECT job_id, run_id, what FROM public.side"),
    ("I4", "DELETE FROM public.side WHERE what = 'start'"),
    ("I5", "UPDATE public.event SET asked = true WHERE is_now = 'doing'"),
    ("I6", "INSERT INTO public.side (job_id, run_id, what) VALUES (1, 7777, 'start')"),
    ("I8", "UPDATE public.event SET late = 100 WHERE is_now = 'succeeded'"),
    ("I9", "UPDATE public.event SET crashes = 4"),
    ("I9", "UPDATE public.event SET crashes = 3"),
    ("I9", f"{PUT_BACK} 'rescued' FROM generate_series(1, 3)"),
    ("I9", f"{PUT_BACK} 'retried' FROM generate_series(1, 2)"),
    ("I9", f"{PUT_BACK} 'interrupted' FROM generate_series(1, 2)"),
    ("I11", f"{EVENT} (2, 2, 'a', 'todo', 'doing', 0), (3, 3, 'a', 'todo', 'doing', 0)"),
]


@pytest.fixture
def witnessed(conn: Conn) -> Conn:
    """A database in which one job has succeeded, seen by the witnesses."""
    oracle.install(conn)
    conn.execute("SELECT pljobs.defer_job('task')")
    conn.execute("SELECT pljobs.register_worker_v1('sql', 'here', 1)")
    conn.execute("SELECT FROM pljobs.fetch_jobs_v1(1)")
    conn.execute(
        "INSERT INTO public.side (job_id, run_id, what)"
        " SELECT j.id, j.run_id, w FROM pljobs.job AS j, unnest('{start,end}'::text[]) AS w"
    )
    conn.execute(
        "SELECT pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object("
        " 'job_id', j.id, 'run_id', j.run_id, 'outcome', 'succeeded'))) FROM pljobs.job AS j"
    )
    return conn


def test_all_is_well_with_a_job_that_has_succeeded(witnessed: Conn) -> None:
    assert oracle.check(witnessed, {1: ["already_finished"]}) == {"succeeded": 1}


@pytest.mark.parametrize(("invariant", "change"), BROKEN)
def test_a_broken_rule_is_named(witnessed: Conn, invariant: str, change: str) -> None:
    witnessed.execute(change.encode())
    others = {each for each, _ in BROKEN} - {invariant}  # what is broken may break more
    with pytest.raises(Violation, match=f"^{invariant}:"):
        oracle.check(witnessed, without=others)


@pytest.mark.parametrize("answers", [["cancelled"], ["already_finished", "abort_requested"], ["denied"]])
def test_an_answer_that_does_not_hold_is_noticed(witnessed: Conn, answers: list[str]) -> None:
    with pytest.raises(Violation, match=r"^I7"):
        oracle.check(witnessed, {1: answers})


def test_an_unexpected_sqlstate_and_each_deadlock_are_noticed(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    line = "2026-01-01 00:00:00.000 UTC [{}] {} {} ERROR:  it says why\n"
    log.write_text(line.format(1, "ours", "57P01") + line.format(2, "theirs", "22012"))
    logs.check_server_log(log, 0, "ours", logs.EXPECTED_STATES)
    end = log.stat().st_size
    for state, allowed in [("22012", logs.EXPECTED_STATES), ("40P01", {"40P01"})]:
        with log.open("a") as file:
            file.write(line.format(3, "ours", state))
        with pytest.raises(Violation, match="I14"):
            logs.check_server_log(log, end, "ours", allowed)
        end = log.stat().st_size
    logs.check_server_log(log, end, "ours", set())


TRACEBACKS = """\
INFO:a line
Traceback (most recent call last):
  File "a.py", line 1, in a
    raise ValueError("one\\n two")
                     ^^^^^
ValueError: one
 two

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 2, in a
OSError: two
  + Exception Group Traceback (most recent call last):
  |   File "b.py", line 1, in b
  | ExceptionGroup: three (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "c.py", line 1, in c
    | KeyError: 'four'
    +------------------------------------
INFO:another
"""


def test_what_was_raised_is_found_in_a_log(tmp_path: Path) -> None:
    found = [line.partition(":")[0] for line in logs.tracebacks(TRACEBACKS)]
    assert found == ["ValueError", "OSError", "ExceptionGroup", "KeyError"]
    log = tmp_path / "worker.log"
    log.write_text(TRACEBACKS)
    logs.check_worker_log(log, ["^(Value|OS|Key)Error", "Group"])
    with pytest.raises(Violation, match="KeyError"):
        logs.check_worker_log(log, ["^(Value|OS)Error", "Group"])
