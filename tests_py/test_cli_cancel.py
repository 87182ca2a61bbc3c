"""The command line: cancel, abort, retry, delete, and their exit codes."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from cli_fixtures import Pljobs, app_folder, bare_environment, fields, pljobs, started, status, worker
from waiting import wait_until


def test_cancel_of_a_waiting_job(pljobs: Pljobs) -> None:
    pljobs("defer", "a")
    assert pljobs("cancel", "1").stdout == "job 1: cancelled\n"
    assert pljobs("cancel", "1").stdout == "job 1: already_cancelled\n"
    assert pljobs("cancel", "1", "--delete").stdout == "job 1: deleted\n"
    result = pljobs("cancel", "1", exits=3)
    assert result.stdout == "job 1: not_found\n"
    assert "never existed, or was deleted" in result.stderr


def test_cancel_answers_scripts_with_a_row(pljobs: Pljobs) -> None:
    pljobs("defer", "a")
    assert fields(pljobs("cancel", "1", "--json")) == {
        "job_id": 1,
        "outcome": "cancelled",
        "status_before": "todo",
        "status_after": "cancelled",
        "request_id": 1,
        "worker_id": None,
        "run_id": None,
        "sql_way": None,
    }
    assert fields(pljobs("cancel", "99", "--json", exits=3))["outcome"] == "not_found"


def test_an_answer_that_cannot_be_written_is_one_line_and_what_was_done_is_done(
    pljobs: Pljobs, db_url: str
) -> None:
    pljobs("defer", "a")
    command = [sys.executable, "-m", "pljobs", "cancel", "1", "--url", db_url]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("pljobs: can't write the answer: No space left on device; ")
    assert done.stderr.count("\n") == 1
    assert status(pljobs) == "cancelled"


@pytest.mark.parametrize("job_id", ["abc", "1.5", "1_0", "٣", "", "99999999999999999999", "1; DROP TABLE"])
@pytest.mark.parametrize("command", ["cancel", "show", "retry", "delete"])
def test_a_bad_id_is_a_matter_of_usage(pljobs: Pljobs, command: str, job_id: str) -> None:
    assert "a whole number" in pljobs(command, job_id, exits=2).stderr


def test_a_negative_id_is_not_found(pljobs: Pljobs) -> None:
    pljobs("cancel", "--", "-1", exits=3)


def test_retry_and_delete(pljobs: Pljobs) -> None:
    pljobs("defer", "a")
    assert "pljobs cancel" in pljobs("retry", "1", exits=4).stderr
    assert "pljobs cancel" in pljobs("delete", "1", exits=4).stderr
    pljobs("cancel", "1")
    assert pljobs("retry", "1", "--to-queue", "other").stdout == "job 1: requeued\n"
    assert json.loads(pljobs("list", "--json").stdout)[0]["queue"] == "other"
    pljobs("cancel", "1")
    assert fields(pljobs("delete", "1", "--json")) == {
        "job_id": 1,
        "outcome": "deleted",
        "status": "cancelled",
    }
    pljobs("retry", "1", exits=3)
    pljobs("delete", "1", exits=3)


def test_cancel_of_a_running_job_is_refused_without_abort(pljobs: Pljobs, worker: object) -> None:
    job_id = started(pljobs, "spin")
    result = pljobs("cancel", str(job_id), exits=4)
    assert result.stdout == f"job {job_id}: running\n"
    assert "--abort" in result.stderr
    pljobs("cancel", str(job_id), "--wait", exits=4)
    pljobs("delete", str(job_id), exits=4)
    pljobs("retry", str(job_id), exits=4)


def test_abort_and_wait_tells_how_it_ended_who_asked_and_when(pljobs: Pljobs, worker: object) -> None:
    job_id = started(pljobs, "spin")
    told = pljobs("cancel", str(job_id), "--abort", "--wait", "--actor", "ann").stdout
    assert told.startswith(f"job {job_id}: aborted; asked by pljobs_tests for ann at 20")
    assert status(pljobs, job_id) == "aborted"
    pljobs("cancel", str(job_id), "--abort", "--wait")


def test_abort_delete_and_wait_ends_when_the_job_is_gone(pljobs: Pljobs, worker: object) -> None:
    job_id = started(pljobs, "spin")
    row = fields(pljobs("cancel", str(job_id), "--abort", "--delete", "--wait", "--json"))
    request = row["request"]
    assert isinstance(request, dict)
    assert (request["resolution"], request["status"]) == ("aborted", None)
    pljobs("show", str(job_id), exits=3)


def test_a_job_that_swallows_its_abort_times_out_with_5_and_force_ends_it(
    pljobs: Pljobs, worker: object
) -> None:
    job_id = started(pljobs, "swallow")
    result = pljobs("cancel", str(job_id), "--abort", "--wait", "0.1", exits=5)
    assert "the request stays" in result.stderr
    assert (
        "aborted (by force: its code may still run)"
        in pljobs("cancel", str(job_id), "--force", "--wait").stdout
    )
    assert status(pljobs, job_id) == "aborted"


def test_a_finished_job_is_refused_with_4(pljobs: Pljobs, worker: object) -> None:
    pljobs("defer", "add", '{"a": 1, "b": 2}')
    wait_until(lambda: status(pljobs) == "succeeded")
    assert pljobs("cancel", "1", exits=4).stdout == "job 1: already_finished\n"
    pljobs("retry", "1", exits=4)
    assert ["result", "3"] in [line.split() for line in pljobs("show", "1").stdout.splitlines()]


@pytest.mark.parametrize(
    "command",
    [
        ["cancel", "1"],
        ["cancel", "1", "--tree"],
        ["show", "1"],
        ["rescind", "1"],
        ["retry", "1"],
        ["delete", "1"],
    ],
)
def test_a_job_of_others_is_said_to_be_perhaps_that(
    pljobs: Pljobs, conn: psycopg.Connection, command: list[str]
) -> None:
    pljobs("defer", "a")
    conn.execute("DROP ROLE IF EXISTS cli_producer; CREATE ROLE cli_producer LOGIN")
    conn.execute("GRANT pljobs_producer TO cli_producer")
    try:
        told = pljobs(*command, "--url", conn.info.dsn + " user=cli_producer", exits=3).stderr
        assert "or belongs to another role, and this login may not see it" in told
    finally:
        conn.execute("DROP OWNED BY cli_producer; DROP ROLE cli_producer")
