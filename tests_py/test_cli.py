"""The command line: what it defers and reads, for people and for scripts."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from cli_fixtures import Pljobs, answer, app_folder, bare_environment, fields, in_a_terminal, pljobs, worker


def test_defer_answers_with_the_id_and_the_job_is_as_asked(pljobs: Pljobs) -> None:
    options = ["--queue", "mail", "--priority", "7", "--lock", "l", "--queueing-lock", "q", "--in", "2h"]
    result = pljobs("defer", "send", '{"to": "é"}', *options, "--json")
    assert fields(result) == {"job_id": 1, "task": "send", "queue": "mail"}
    job = json.loads(pljobs("show", "1", "--json").stdout)["job"]
    assert (job["task"], job["args"], job["queue"], job["priority"]) == ("send", {"to": "é"}, "mail", 7)
    assert (job["lock"], job["queueing_lock"], job["waiting_for"]) == ("l", "q", "schedule")


def test_defer_for_people_is_a_sentence(pljobs: Pljobs) -> None:
    assert pljobs("defer", "send").stdout == "job 1 deferred: send on the queue default\n"


def test_defer_reads_arguments_from_stdin_and_from_a_file(pljobs: Pljobs, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text('{"n": 12345678901234567890123}')
    pljobs("defer", "a", "-", stdin='{"n": 1}')
    pljobs("defer", "b", f"@{tmp_path}/args.json")
    assert '"n": 1}' in pljobs("show", "1", "--json").stdout
    assert '"n": 12345678901234567890123}' in pljobs("show", "2", "--json").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["not json"],
        ["[1]"],
        ['{"a": NaN}'],
        ['{"a": "\\u0000"}'],
        ["@/is/not/there"],
        ["{}", "--at", "tomorrow"],
        ["{}", "--at", "2030-01-01T00:00"],
        ["{}", "--in", "soon"],
        ["{}", "--in", "1h", "--at", "2030-01-01T00:00Z"],
        ["{}", "--queue", "x" * 256],
        ["{}", "--priority", "99999999999"],
        ["{}", "--fairness-key", ""],
        ["{}", "--idempotency-key", "x" * 256],
    ],
)
def test_defer_refuses_what_makes_no_sense_with_2_and_without_a_traceback(
    pljobs: Pljobs, arguments: list[str]
) -> None:
    result = pljobs("defer", "send", *arguments, exits=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert answer(pljobs("list", "--json")) == []


def test_defer_to_a_taken_queueing_lock_is_refused_with_4(pljobs: Pljobs) -> None:
    pljobs("defer", "a", "--queueing-lock", "q")
    assert "q" in pljobs("defer", "a", "--queueing-lock", "q", exits=4).stderr


def test_a_defer_under_an_idempotency_key_can_be_repeated(pljobs: Pljobs) -> None:
    once = ["defer", "a", "--idempotency-key", "order 42"]
    assert fields(pljobs(*once, "--json"))["job_id"] == fields(pljobs(*once, "--json"))["job_id"] == 1
    assert "order 42" in pljobs(*once, '{"n": 1}', exits=4).stderr
    assert len(json.loads(pljobs("list", "--json").stdout)) == 1


def test_defer_takes_a_fairness_key_and_show_tells_it(pljobs: Pljobs) -> None:
    pljobs("defer", "a", "--fairness-key", "customer 42")
    job = json.loads(pljobs("show", "1", "--json").stdout)["job"]
    assert (job["fairness_key"], job["waiting_for"]) == ("customer 42", "turn")


def test_defer_with_an_app_takes_the_tasks_own_settings(pljobs: Pljobs, app_folder: Path) -> None:
    pljobs("defer", "spin", "--app", "shop:app")
    job = json.loads(pljobs("show", "1", "--json").stdout)["job"]
    assert (job["queue"], job["priority"], job["lock"]) == ("spinning", 3, "spin lock")


def test_defer_with_an_app_refuses_unknown_tasks_unless_told_otherwise(
    pljobs: Pljobs, app_folder: Path
) -> None:
    assert "'nope'" in pljobs("defer", "nope", "--app", "shop.app", exits=1).stderr
    pljobs("defer", "nope", "--app", "shop.app", "--unknown")


def test_list_filters(pljobs: Pljobs) -> None:
    pljobs("defer", "a", "--queue", "q1")
    pljobs("defer", "b", "--queue", "q2", "--lock", "l")
    pljobs("cancel", "1")

    def ids(*options: str) -> list[int]:
        return [row["id"] for row in json.loads(pljobs("list", "--json", *options).stdout)]

    assert ids() == [2, 1]
    assert ids("--oldest-first") == [1, 2]
    assert ids("--limit", "1") == [2]
    assert ids("--limit", "0") == [2, 1]
    assert ids("--queue", "q1") == [1]
    assert ids("--task", "b") == [2]
    assert ids("--lock", "l") == [2]
    assert ids("--status", "cancelled") == [1]
    assert ids("--status", "cancelled", "--status", "todo") == [2, 1]
    assert ids("--abort-requested") == ids("--stalled") == ids("--worker", "1") == []


def test_list_takes_a_workers_id(pljobs: Pljobs) -> None:
    assert "JOB_ID" not in pljobs("list", "--help").stdout
    assert "'x' is not an id" in pljobs("list", "--worker", "x", exits=2).stderr


def test_list_in_a_pipe_is_one_uncut_uncoloured_line_a_job(pljobs: Pljobs) -> None:
    pljobs("defer", "t" * 200, json.dumps({"text": "two\nlines"}))
    lines = pljobs("list", "--full").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:4] == ["id", "status", "queue", "task"]
    assert "t" * 200 in lines[1]
    assert "\x1b" not in lines[1]


def test_list_says_when_there_may_be_more_and_keeps_stdout_clean(pljobs: Pljobs) -> None:
    for _ in range(2):
        pljobs("defer", "a")
    result = pljobs("list", "--limit", "2", "--json")
    assert "--limit 0" in result.stderr
    assert len(json.loads(result.stdout)) == 2


def test_list_without_jobs_says_so_on_stderr(pljobs: Pljobs) -> None:
    result = pljobs("list")
    assert (result.stdout, result.stderr) == ("", "no jobs\n")


def test_list_needs_no_more_rights_than_a_readers(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    pljobs("defer", "a", '{"secret": 1}')
    conn.execute("DROP ROLE IF EXISTS cli_reader; CREATE ROLE cli_reader LOGIN")
    conn.execute("GRANT pljobs_reader TO cli_reader")
    try:
        url = ["--url", conn.info.dsn + " user=cli_reader"]
        assert len(json.loads(pljobs("list", "--json", *url).stdout)) == 1
        assert json.loads(pljobs("list", "--json", "--full", *url).stdout)[0]["args"] is None
    finally:
        conn.execute("DROP OWNED BY cli_reader; DROP ROLE cli_reader")


def test_show_tells_the_job_its_history_and_its_requests(pljobs: Pljobs) -> None:
    pljobs("defer", "a", '{"n": 1}')
    pljobs("cancel", "1", "--reason", "no need", "--actor", "ann")
    told = pljobs("show", "1").stdout
    for part in (
        "a",
        "cancelled",
        '{"n": 1}',
        "History",
        "deferred",
        "Requests",
        "pljobs_tests for ann",
        "no need",
    ):
        assert part in told
    parts = fields(pljobs("show", "1", "--json"))
    assert list(parts) == ["job", "history", "requests"]


def test_show_of_a_deleted_job_tells_what_was_asked_and_ends_with_3(pljobs: Pljobs) -> None:
    pljobs("defer", "a")
    pljobs("cancel", "1", "--delete", "--actor", "ann")
    result = pljobs("show", "1", exits=3)
    assert "pljobs_tests for ann" in result.stdout
    assert fields(pljobs("show", "1", "--json", exits=3))["job"] is None


def test_show_names_what_was_asked_once(pljobs: Pljobs) -> None:
    pljobs("defer", "a")
    pljobs("cancel", "1")
    pljobs("cancel", "1", "--delete")
    rows = pljobs("show", "1", exits=3).stdout.split("Requests")[1].splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [["cancel", "pljobs_tests"], ["delete", "pljobs_tests"]]


def test_queues_and_pausing(pljobs: Pljobs) -> None:
    pljobs("defer", "a", "--queue", "mail")
    assert pljobs("pause", "mail", "--reason", "provider down").stdout == "queue mail: paused\n"
    assert fields(pljobs("pause", "mail", "--json")) == {"queue": "mail", "outcome": "already_paused"}
    assert "by pljobs_tests: provider down" in pljobs("queues").stdout
    assert json.loads(pljobs("queues", "--json").stdout)[0]["paused"] is True
    assert pljobs("resume", "mail").stdout == "queue mail: resumed\n"
    assert pljobs("resume", "mail").stdout == "queue mail: not_paused\n"


def test_a_jobs_text_cannot_drive_a_terminal(pljobs: Pljobs, conn: psycopg.Connection, db_url: str) -> None:
    evil = "\x1b]0;owned\x07 \x9b31m \u202egnp.exe [red]x[/red]"
    conn.execute("SELECT pljobs.defer_job(%s, queue => %s)", [f"task {evil}", f"queue {evil}"])
    conn.execute("SELECT pljobs.pause_queue(%s, reason => %s)", [f"queue {evil}", evil])
    conn.execute("SELECT pljobs.cancel_job(1, reason => %s)", [evil])
    for command in (["list", "--full"], ["show", "1"], ["queues"], ["list", "--full", "--json"]):
        for shown in (pljobs(*command).stdout, in_a_terminal(db_url, *command, columns=250)):
            ours = shown
            if command[-1] != "--json":
                # On a terminal the only escapes are our own colours.
                for code in ("0", "1", "2", "35", "36"):
                    ours = ours.replace(f"\x1b[{code}m", "")
            assert not set("\x1b\x07\x9b\u202e") & set(ours), ascii(ours)
            assert "[red]x[/red]" in ours
    assert json.loads(pljobs("list", "--json").stdout)[0]["task"] == f"task {evil}"


def test_on_a_terminal_answers_are_coloured_tables(pljobs: Pljobs, db_url: str) -> None:
    pljobs("defer", "a")
    shown = in_a_terminal(db_url, "list")
    assert "─" in shown
    assert "\x1b[36mtodo" in shown


def test_on_a_terminal_ids_and_statuses_are_never_cut(
    pljobs: Pljobs, conn: psycopg.Connection, db_url: str
) -> None:
    for _ in range(2):
        pljobs("defer", "a_task_with_a_name_that_is_long", "--queue", "q" * 40, "--lock", "l")
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1)")
    conn.execute("SELECT pljobs.fetch_jobs_v1(1)")
    pljobs("cancel", "1", "--abort")
    pljobs("cancel", "2")
    for columns in (20, 45, 60, 80, 110):
        shown = in_a_terminal(db_url, "list", columns=columns)
        assert ("\u2500" in shown) is (columns > 60), columns
        assert all(word in shown for word in ("doing (abort", "requested)"))
        assert "cancelled" in shown
        # What a narrow one shows is one line a job, which it folds itself, with nothing left out.
        assert ("a_task_with_a_name_that_is_long" in shown) is (columns <= 60)
