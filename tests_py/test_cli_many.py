"""The command line: cancel and retry by filter, rescind, stuck."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import psycopg
import pytest

from cli_fixtures import (
    Pljobs,
    answer,
    app_folder,
    bare_environment,
    fields,
    in_a_terminal,
    pljobs,
    started,
    status,
    worker,
)
from pljobs import db, manager_many
from pljobs.answers import Call
from waiting import wait_until


@pytest.fixture
def jobs(pljobs: Pljobs) -> None:
    """Three jobs that wait."""
    pljobs("defer", "mail", '{"to": "ann", "n": 1}', "--queue", "q")
    pljobs("defer", "mail", '{"to": "bob"}', "--lock", "l")
    pljobs("defer", "other", "--queue", "q")


@pytest.mark.usefixtures("jobs")
def test_by_default_it_is_shown_and_not_done(pljobs: Pljobs) -> None:
    result = pljobs("cancel", "--task", "mail")
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["id", "queue", "task", "status", "outcome"],
        ["1", "q", "mail", "todo", "would_cancel"],
        ["2", "default", "mail", "todo", "would_cancel"],
    ]
    assert result.stderr == "2 jobs: 2 would_cancel; nothing was changed: --yes does it\n"
    assert status(pljobs) == "todo"


@pytest.mark.usefixtures("jobs")
def test_with_yes_it_is_done(pljobs: Pljobs) -> None:
    result = pljobs("cancel", "--task", "mail", "--yes", "--reason", "bad", "--actor", "ann")
    assert result.stdout == "2 jobs: 2 cancelled\n"
    assert [status(pljobs, job_id) for job_id in (1, 2, 3)] == ["cancelled", "cancelled", "todo"]
    (request,) = json.loads(pljobs("show", "1", "--json").stdout)["requests"]
    assert (request["reason"], request["actor"]) == ("bad", "ann")
    again = pljobs("cancel", "--task", "mail", "--yes")
    assert (again.stdout, again.stderr) == ("", "no job matches\n")


@pytest.mark.usefixtures("jobs")
def test_every_filter(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    conn.execute("UPDATE pljobs.job SET created_at = created_at - interval '1 hour' WHERE id = 3")

    def ids(*options: str) -> list[int]:
        return [row["job_id"] for row in json.loads(pljobs("cancel", "--json", *options).stdout)]

    assert ids("--queue", "q") == [1, 3]
    assert ids("--lock", "l") == [2]
    assert ids("--args", '{"to": "ann"}') == [1]
    assert ids("--ids", "3, 1,99") == [1, 3]
    assert ids("--older-than", "30m") == [3]
    assert ids("--queue", "q", "--status", "doing") == []
    assert ids("--queue", "q", "--task", "mail", "--status", "todo") == [1]


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    "options", [["cancel"], ["cancel", "--yes", "--abort"], ["retry", "--yes", "--json"]]
)
def test_ids_of_which_none_is_there_end_with_3(pljobs: Pljobs, options: list[str]) -> None:
    result = pljobs(*options, "--ids", "99999,98888", exits=3)
    assert "pljobs: not found: 98888, 99999: it never existed, or was deleted" in result.stderr
    assert result.stdout == ("[]\n" if "--json" in options else "")


@pytest.mark.usefixtures("jobs")
def test_ids_that_do_not_match_are_said(pljobs: Pljobs) -> None:
    pljobs("cancel", "2")
    result = pljobs("cancel", "--ids", "1,2,99", "--yes")
    assert result.stdout == "1 jobs: 1 cancelled\n"
    assert result.stderr == "not matched: 2 (cancelled)\nnot found: 99\n"
    result = pljobs("cancel", "--ids", "1", "--delete", "--yes")
    assert result.stderr == "no job matches\nnot matched: 1 (cancelled)\n"
    assert pljobs("cancel", "--ids", "3", "--delete", "--yes").stderr == ""
    assert pljobs("retry", "--ids", "1,3", "--yes").stderr == "not found: 3\n"


@pytest.mark.usefixtures("jobs")
def test_for_scripts_each_job_is_a_row(pljobs: Pljobs) -> None:
    assert answer(pljobs("cancel", "--lock", "l", "--delete", "--yes", "--json")) == [
        {"job_id": 2, "queue": "default", "task": "mail", "status_before": "todo", "outcome": "deleted"}
    ]
    assert answer(pljobs("cancel", "--lock", "l", "--yes", "--json")) == []
    assert answer(pljobs("retry", "--queue", "q", "--json")) == []


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--yes"],
        ["--status", "todo", "--yes"],
        ["--args", "{}", "--yes"],
        ["--older-than", "0", "--yes"],
        ["1", "--yes"],
        ["1", "--task", "mail"],
        ["--task", "mail", "--wait"],
        ["--ids", "", "--yes"],
        ["--ids", "1;2", "--yes"],
        ["--args", "[1]", "--yes"],
        ["--status", "failed", "--task", "mail"],
        ["--queue", "x" * 256, "--yes"],
    ],
)
def test_what_makes_no_sense_ends_with_2_and_changes_nothing(pljobs: Pljobs, options: list[str]) -> None:
    result = pljobs("cancel", *options, exits=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert status(pljobs) == "todo"


@pytest.mark.usefixtures("jobs")
def test_retry_by_filter(pljobs: Pljobs) -> None:
    pljobs("cancel", "--ids", "1,2,3", "--yes")
    assert "1 would_requeue" in pljobs("retry", "--task", "other").stderr
    assert (
        pljobs("retry", "--task", "mail", "--status", "cancelled", "--yes").stdout == "2 jobs: 2 requeued\n"
    )
    assert [status(pljobs, job_id) for job_id in (1, 2, 3)] == ["todo", "todo", "cancelled"]
    told = pljobs("retry", "3", "--queue", "slow", exits=2).stderr
    assert "--to-queue" in told
    pljobs("retry", "--task", "mail", "--to-queue", "slow", exits=2)
    pljobs("retry", exits=2)
    pljobs("retry", "3", "--to-queue", "slow", "--to-lock", "l")
    job = json.loads(pljobs("show", "3", "--json").stdout)["job"]
    assert (job["queue"], job["lock"]) == ("slow", "l")


def test_running_jobs_are_left_alone_without_abort(pljobs: Pljobs, worker: subprocess.Popen[str]) -> None:
    job_id = started(pljobs, "spin")
    assert "running" in pljobs("cancel", "--task", "spin").stdout
    result = pljobs("cancel", "--task", "spin", "--yes", exits=4)
    assert "1 jobs run, and were left alone: --abort" in result.stderr
    assert "1 abort_requested" in pljobs("cancel", "--task", "spin", "--abort", "--yes").stdout
    wait_until(lambda: status(pljobs, job_id) == "aborted")


def test_many_are_shown_in_part_and_done_in_batches_with_a_bar(
    pljobs: Pljobs, conn: psycopg.Connection, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute("SELECT pljobs.defer_job('t') FROM generate_series(1, 120)")
    shown = pljobs("cancel", "--task", "t")
    assert len(shown.stdout.splitlines()) == 51
    assert "120 would_cancel" in shown.stderr
    assert "50 of them are shown" in shown.stderr
    assert len(json.loads(pljobs("cancel", "--task", "t", "--json").stdout)) == 120
    monkeypatch.setattr(manager_many, "BATCH", 50)
    assert pljobs("cancel", "--task", "t", "--yes").stdout == "120 jobs: 120 cancelled\n"
    transactions = conn.execute("SELECT count(DISTINCT xmin::text) FROM pljobs.job").fetchone()
    assert transactions == (3,)
    said = in_a_terminal(db_url, "retry", "--task", "t", "--yes")
    assert "120/120" in said
    assert "120 requeued" in said


def test_interrupted_it_says_what_is_done(
    pljobs: Pljobs, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute("SELECT pljobs.defer_job('t') FROM generate_series(1, 5)")
    monkeypatch.setattr(manager_many, "BATCH", 2)
    run = db.run
    calls = []

    def interrupted(conn: psycopg.Connection, call: Call[Any]) -> object:
        calls.extend([1] if "cancel_jobs_v1" in call.statement else [])
        if len(calls) == 5:  # three to count, the first that does something, and then
            raise KeyboardInterrupt
        return run(conn, call)

    monkeypatch.setattr(db, "run", interrupted)
    result = pljobs("cancel", "--task", "t", "--yes", exits=130)
    assert "stopped after 2 jobs: 2 cancelled; that is done, and stays so" in result.stderr
    assert conn.execute("SELECT count(*) FROM pljobs.job WHERE status = 'cancelled'").fetchone() == (2,)


def test_a_request_is_taken_back(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    pljobs("rescind", "1", exits=3)
    pljobs("defer", "t")
    pljobs("rescind", "1", exits=4)
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1)")
    conn.execute("SELECT pljobs.fetch_jobs_v1(1)")
    pljobs("cancel", "1", "--abort")
    told = fields(pljobs("rescind", "1", "--reason", "mistake", "--json"))
    assert told == {"job_id": 1, "outcome": "rescinded", "request_id": 1}
    assert "nobody asked" in pljobs("rescind", "1", exits=4).stderr
    pljobs("cancel", "1", "--abort")
    conn.execute("SELECT pljobs.heartbeat_v1(1)")
    result = pljobs("rescind", "1", exits=4)
    assert result.stdout == "job 1: already_delivered\n"
    assert "has heard of it" in result.stderr


def test_stuck_lists_what_was_asked_and_still_runs(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    assert pljobs("stuck").stderr == "no job was asked to abort and still runs\n"
    assert answer(pljobs("stuck", "--json")) == []
    pljobs("defer", "t")
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1)")
    conn.execute("SELECT pljobs.fetch_jobs_v1(1)")
    pljobs("cancel", "1", "--abort", "--actor", "ann")
    headings, row = pljobs("stuck").stdout.splitlines()
    assert headings.split() == [
        "job",
        "asked",
        "ago",
        "task",
        "queue",
        "asked",
        "by",
        "source",
        "worker",
        "level",
        "handling",
        "sql",
        "next",
    ]
    assert "for ann" in row
    assert "w@h:1" in row
    assert "will hear of it" in row
    (stuck,) = json.loads(pljobs("stuck", "--json").stdout)
    assert (stuck["job_id"], stuck["handling"], stuck["worker"]) == (1, None, "w@h:1")
