"""The command line: grace, SQL, trees, waiting for the end; limits and progress, said and shown."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click
import psycopg
import pytest

from cli_fixtures import Pljobs, answer, app_folder, bare_environment, fields, pljobs, started, status, worker
from pljobs import calls, db
from pljobs.answers import RunEnd
from pljobs.cli_base import duration


def a_run(pljobs: Pljobs, conn: psycopg.Connection, *options: str) -> int:
    """A job that runs, of a worker that is a registration alone; returns its id."""
    job_id = fields(pljobs("defer", "t", "--priority", "1000", *options, "--json"))["job_id"]
    assert isinstance(job_id, int)
    (job,) = db.run(conn, calls.fetch_jobs(db.run(conn, calls.register_worker("w", host="h", pid=1))))
    assert job.id == job_id
    return job_id


def shown(pljobs: Pljobs, job_id: int = 1) -> dict[str, Any]:
    return dict(json.loads(pljobs("show", str(job_id), "--json").stdout)["job"])


def lines(text: str) -> dict[str, str]:
    """The fields that `show` prints."""
    parts = (line.split("  ", 1) for line in text.split("\n\n", maxsplit=1)[0].splitlines())
    return {name: value.strip() for name, value in parts}


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("0", timedelta(0)),
        ("10", timedelta(seconds=10)),
        ("0.5", timedelta(milliseconds=500)),
        ("10s", timedelta(seconds=10)),
        ("5m", timedelta(minutes=5)),
        ("1h", timedelta(hours=1)),
        ("1.5 h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_length_of_time_is_read(text: str, length: timedelta) -> None:
    assert duration(text) == length


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 minutes", "1h30m", "1e3", "٣", "nan", "9" * 30 + "w"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        duration(text)


def test_a_grace_is_asked_for(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    job_id = a_run(pljobs, conn)
    pljobs("cancel", str(job_id), "--abort", "--grace", "1m", "--term-grace", "500ms")
    found = conn.execute(
        "SELECT kill_at - term_at, term_at - sql_at BETWEEN '29 s' AND '31 s' FROM pljobs.requests"
    ).fetchone()
    assert found == (timedelta(milliseconds=500), True)
    pljobs("cancel", "--task", "t", "--abort", "--grace", "0", "--yes")
    assert conn.execute("SELECT term_at <= clock_timestamp() FROM pljobs.requests").fetchone() == (True,)


def test_the_way_of_its_sql_is_said_in_words(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    job_id = str(a_run(pljobs, conn))
    result = pljobs("cancel", job_id, "--abort", "--sql")
    assert result.stdout == f"job {job_id}: abort_requested\n"
    assert result.stderr.startswith(f"job {job_id}: it is in no statement that can be cancelled")
    assert pljobs("cancel", job_id, "--abort").stderr == ""
    result = pljobs("cancel", job_id, "--abort", "--sql", "--json")
    assert (fields(result)["sql_way"], result.stderr) == ("none", "")
    pljobs("defer", "t")
    assert pljobs("cancel", "2", "--sql").stderr == ""


@pytest.mark.parametrize(
    ("outcome", "exits", "line"),
    [
        ("aborted", 0, "aborted; asked by"),
        ("killed", 0, "aborted (killed)"),
        ("abandoned", 0, "aborted (given up: its code may still run)"),
        ("succeeded", 4, "succeeded (it finished before it stopped)"),
        ("failed", 4, "failed (it failed before it stopped)"),
        (None, 4, "doing (somebody took the request back)"),
    ],
)
def test_who_waits_is_told_how_it_ended_and_whether_it_stopped(
    pljobs: Pljobs,
    conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Any,
    exits: int,
    line: str,
) -> None:
    job_id = a_run(pljobs, conn)

    def ends(_: float) -> None:
        """What happens while the command waits."""
        if outcome is None:
            conn.execute("SELECT pljobs.rescind_request_v1(%s)", [job_id])
        else:
            db.run(conn, calls.finish_jobs([RunEnd(job_id=job_id, run_id=1, outcome=outcome)]))

    monkeypatch.setattr(time, "sleep", ends)
    result = pljobs("cancel", str(job_id), "--abort", "--grace", "1h", "--wait", "60", exits=exits)
    assert result.stdout.startswith(f"job {job_id}: {line}")
    assert result.stderr.startswith(f"job {job_id}: abort_requested; waiting until it has ended\n")
    assert ("was not stopped" in result.stderr) is (exits == 4)


def test_waiting_has_an_end_and_the_request_stays(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    job_id = str(a_run(pljobs, conn))
    result = pljobs("cancel", job_id, "--abort", "--wait", "0", exits=5)
    assert "still runs after 0:00:00, and its worker hasn't heard of it; the request stays: " in result.stderr
    assert "`pljobs stuck` says what can be done" in result.stderr
    result = pljobs("cancel", job_id, "--abort", "--wait", "0", "--json", exits=5)
    assert json.loads(result.stdout)["outcome"] == "abort_already_requested"
    assert "1 its SQL" not in pljobs("stuck").stdout
    row = fields(pljobs("cancel", job_id, "--force", "--wait", "5m", "--json"))
    assert (row["outcome"], row["request"]["resolution"]) == ("aborted", "forced")  # type: ignore[index]


def test_a_job_that_was_asked_before_is_said_to_have_been(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    a_run(pljobs, conn, "--timeout", "1h")
    assert "was left alone: --abort asks it" in pljobs("cancel", "1", exits=4).stderr
    conn.execute("UPDATE pljobs.job SET timeout_at = clock_timestamp() - interval '1 s'")
    conn.execute("SELECT pljobs.enforce_limits()")
    assert "has been asked to stop by its timeout at 20" in pljobs("cancel", "1", exits=4).stderr
    pljobs("cancel", "1", "--abort", "--actor", "ann")
    result = pljobs("cancel", "1", exits=4)
    assert result.stdout == "job 1: running\n"
    assert result.stderr.startswith(
        "pljobs: job 1: it runs, and has been asked to stop by pljobs_tests for ann at 20"
    )
    assert result.stderr.endswith(" (request 1): `pljobs stuck` shows what became of it\n")


def test_a_number_behind_wait_is_a_time(pljobs: Pljobs) -> None:
    pljobs("defer", "t")
    assert "give the ID first" in pljobs("cancel", "--wait", "1", exits=2).stderr
    assert status(pljobs) == "todo"
    assert "cancelled; asked by" in pljobs("cancel", "--wait", "--reason", "x", "1").stdout


@pytest.mark.parametrize(
    "options",
    [
        ["1", "--grace", "-1"],
        ["1", "--grace", "soon"],
        ["1", "--grace", "nan"],
        ["1", "--term-grace", "5s"],
        ["--task", "t", "--yes", "--term-grace", "5s"],
        ["1", "--tree", "--term-grace", "5s"],
        ["1", "--wait", "soon"],
        ["1", "--dry-run"],
        ["1", "--tree", "--wait"],
        ["1", "--tree", "--parent", "1"],
        ["--tree"],
        ["--tree", "--task", "t", "--yes"],
        ["--dry-run", "--task", "t", "--yes"],
        ["--parent", "x", "--yes"],
        ["1", "--parent", "1"],
    ],
)
def test_what_makes_no_sense_ends_with_2_and_changes_nothing(pljobs: Pljobs, options: list[str]) -> None:
    pljobs("defer", "t")
    result = pljobs("cancel", *options, exits=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert status(pljobs) == "todo"


@pytest.fixture
def tree(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    """Job 1 runs, and deferred 2, which runs too, and deferred 3, which waits; 4 is none of theirs."""
    a_run(pljobs, conn)
    a_run(pljobs, conn, "--parent", "1")
    pljobs("defer", "t", "--parent", "2", "--queue", "q")
    pljobs("defer", "t")


@pytest.mark.usefixtures("tree")
def test_a_tree_is_shown_and_then_stopped(pljobs: Pljobs) -> None:
    result = pljobs("cancel", "1", "--tree", "--abort", "--dry-run")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["id", "parent", "queue", "task", "status", "outcome"],
        ["1", "default", "t", "doing", "would_abort"],
        ["2", "1", "default", "t", "doing", "would_abort"],
        ["3", "2", "q", "t", "todo", "would_cancel"],
    ]
    assert result.stderr == (
        "3 jobs: 2 would_abort, 1 would_cancel; nothing was changed: without --dry-run it is done\n"
    )
    assert status(pljobs, 3) == "todo"
    result = pljobs("cancel", "1", "--tree", "--abort", "--grace", "10s", "--sql", "--reason", "wrong feed")
    assert result.stderr == "3 jobs: 2 abort_requested, 1 cancelled\n"
    assert shown(pljobs, 3)["message"] == "wrong feed"
    assert [status(pljobs, job_id) for job_id in (1, 2, 3, 4)] == ["doing", "doing", "cancelled", "todo"]
    assert "was cancelled" in pljobs("defer", "t", "--parent", "2", exits=4).stderr


@pytest.mark.usefixtures("tree")
def test_a_trees_exit_code_says_what_was_left_alone(pljobs: Pljobs) -> None:
    result = pljobs("cancel", "1", "--tree", exits=4)
    assert "2 jobs run, and were left alone: --abort" in result.stderr
    assert answer(pljobs("cancel", "1", "--tree", "--force", "--json")) == [
        {"job_id": job_id, "parent_id": parent_id, "queue": "default", "task": "t", "status_before": "doing",
         "outcome": "aborted"}
        for job_id, parent_id in ((1, None), (2, 1))
    ]  # fmt: skip
    pljobs("cancel", "1", "--tree")
    assert (
        "none that was deferred inside of it waits or runs"
        in pljobs("cancel", "99", "--tree", exits=3).stderr
    )
    assert answer(pljobs("cancel", "99", "--tree", "--json", exits=3)) == []


def test_a_finished_tree_is_refused(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    job_id = a_run(pljobs, conn)
    db.run(conn, calls.finish_jobs([RunEnd(job_id=job_id, run_id=1, outcome="succeeded")]))
    assert "nothing was changed" in pljobs("cancel", str(job_id), "--tree", exits=4).stderr


@pytest.mark.usefixtures("tree")
def test_children_by_their_parent(pljobs: Pljobs) -> None:
    assert [row["job_id"] for row in json.loads(pljobs("cancel", "--parent", "2", "--json").stdout)] == [3]
    assert pljobs("cancel", "--parent", "2", "--yes").stdout == "1 jobs: 1 cancelled\n"
    assert [row["id"] for row in json.loads(pljobs("list", "--parent", "2", "--json").stdout)] == [3]
    assert pljobs("retry", "--parent", "2", "--yes").stdout == "1 jobs: 1 requeued\n"
    assert json.loads(pljobs("list", "--json", "--parent", "1").stdout)[0]["parent_id"] == 1


def test_defer_takes_limits_and_show_tells_them(pljobs: Pljobs) -> None:
    pljobs("defer", "root")
    limits = ["--timeout", "90s", "--grace", "500ms", "--on-cancelled", "clean_up", "--parent", "1"]
    pljobs("defer", "t", *limits, "--start-by", "2130-01-31T08:00Z")
    job = shown(pljobs, 2)
    assert (job["timeout"], job["grace"], job["on_cancelled"], job["parent_id"]) == (90, 0.5, "clean_up", 1)
    told = lines(pljobs("show", "2").stdout)
    assert (told["timeout"], told["grace"], told["on cancelled"]) == ("90 s", "0.5 s", "clean_up")
    assert (told["parent"], told["start by"][:7]) == ("1", "2130-01")
    pljobs("defer", "t", "--in", "1h", "--start-within", "1h")
    assert shown(pljobs, 3)["start_by"] > shown(pljobs, 3)["scheduled_at"]
    told = lines(pljobs("show", "1").stdout)
    assert not {"timeout", "grace", "on cancelled", "parent", "start by", "progress", "times out"} & set(told)


@pytest.mark.parametrize(
    "options",
    [
        ["--timeout", "0"],
        ["--timeout", "-1"],
        ["--timeout", "9999w"],
        ["--grace", "soon"],
        ["--start-by", "2030-01-31T08:00"],
        ["--start-by", "2030-01-31T08:00Z", "--start-within", "1h"],
        ["--start-by", "2030-01-31T08:00Z", "--at", "2030-01-31T09:00Z"],
        ["--on-cancelled", ""],
        ["--on-cancelled", "x" * 256],
        ["--parent", "x"],
    ],
)
def test_limits_that_make_no_sense_end_with_2_and_defer_nothing(pljobs: Pljobs, options: list[str]) -> None:
    result = pljobs("defer", "t", *options, exits=2)
    assert "Traceback" not in result.stderr
    assert answer(pljobs("list", "--json")) == []


Progress = Callable[[float | None, str | None], None]


@pytest.fixture
def progress(conn: psycopg.Connection) -> Progress:
    """Say for job 1, as its worker does, how far it is."""

    def say(fraction: float | None, message: str | None) -> None:
        conn.execute(
            "INSERT INTO pljobs.progress (job_id, run_id, at, fraction, message)"
            " VALUES (1, 1, clock_timestamp(), %s, %s)"
            " ON CONFLICT (job_id) DO UPDATE SET fraction = EXCLUDED.fraction, message = EXCLUDED.message",
            [fraction, message],
        )

    return say


def test_how_far_a_job_is_is_shown(pljobs: Pljobs, conn: psycopg.Connection, progress: Progress) -> None:
    a_run(pljobs, conn, "--timeout", "1h")
    progress(0.42, "page \x1b[31m3")
    told = lines(pljobs("show", "1").stdout)
    assert told["progress"].startswith(r"[########------------] 42% page \x1b[31m3 (at 20")
    assert (told["status"], told["times out"][:2]) == ("doing (42%)", "20")
    assert "doing (42%)" in pljobs("list").stdout
    assert json.loads(pljobs("list", "--json").stdout)[0]["progress"] == 0.42
    pljobs("cancel", "1", "--abort")
    assert "doing (42%, abort requested)" in pljobs("list").stdout
    progress(None, "nearly there")
    assert lines(pljobs("show", "1").stdout)["progress"].startswith("nearly there (at 20")
    assert "doing (abort requested)" in pljobs("list").stdout
    progress(1, None)
    pljobs("cancel", "1", "--force")
    told = lines(pljobs("show", "1").stdout)
    assert told["progress"].startswith("[####################] 100% (at 20")
    assert told["status"] == "aborted"


def test_stuck_and_show_say_how_far_an_abort_got(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    a_run(pljobs, conn, "--timeout", "1h")
    conn.execute("UPDATE pljobs.job SET timeout_at = clock_timestamp() - interval '1 s'")
    conn.execute("SELECT pljobs.enforce_limits()")
    row = pljobs("stuck").stdout.splitlines()[1]
    assert "deadline" in row
    assert "0 not told" in row
    pljobs("cancel", "1", "--abort", "--grace", "0")
    conn.execute("SELECT pljobs.heartbeat_v1(1, '{1}')")
    row = pljobs("stuck").stdout.splitlines()[1]
    for part in ("user", "3 terminate", "none", "it is killed at"):
        assert part in row
    (stuck,) = json.loads(pljobs("stuck", "--json").stdout)
    assert (stuck["source"], stuck["level"], stuck["sql_way"]) == ("user", 3, "none")
    told = pljobs("show", "1").stdout.split("Requests")[1]
    for part in ("source", "level", "sql", "user", "3 terminate"):
        assert part in told
    request, joined = json.loads(pljobs("show", "1", "--json").stdout)["requests"]
    assert joined["resolution"] == "joined"
    assert (request["level"], request["kill_at"] > request["term_at"]) == (3, True)


def test_a_tainted_worker_is_seen(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    a_run(pljobs, conn)
    assert "alive (tainted)" not in pljobs("workers").stdout
    pljobs("cancel", "1", "--abort")
    db.run(conn, calls.finish_jobs([RunEnd(job_id=1, run_id=1, outcome="abandoned")]))
    assert "alive (tainted)" in pljobs("workers").stdout
    assert json.loads(pljobs("workers", "--json").stdout)[0]["tainted_at"] is not None


def test_a_task_that_swallows_its_abort_is_stopped_when_its_grace_is_over(
    pljobs: Pljobs, worker: object
) -> None:
    job_id = started(pljobs, "swallow")
    told = pljobs("cancel", str(job_id), "--abort", "--grace", "100ms", "--term-grace", "0", "--wait").stdout
    assert told.startswith(f"job {job_id}: aborted")
    assert status(pljobs, job_id) == "aborted"
