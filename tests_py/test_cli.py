"""The command line: every command on a real server, its answers for people and scripts, its exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from pljobs.cli_commands import cli
from waiting import wait_until

Pljobs = Callable[..., Result]

APP = """
import asyncio, os, time
from pljobs import App, JobAborted

app = App("postgresql:///is_not_there")

@app.task(name="spin", queue="spinning", priority=3, lock="spin lock")
async def spin():
    while True:
        await asyncio.sleep(0.01)

@app.task(name="swallow")
async def swallow():
    while not os.path.exists("enough"):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass

@app.task(name="add")
def add(a, b):
    return a + b
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PG", "PLJOBS_URL", "PLJOBS_APP", "PLJOBS_ACTOR")):
            monkeypatch.delenv(name)


@pytest.fixture
def pljobs(db_url: str) -> Pljobs:
    def run(*arguments: str, stdin: str | None = None, exits: int = 0) -> Result:
        result = CliRunner().invoke(cli, arguments, input=stdin, env={"PLJOBS_URL": db_url})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == exits, result.output
        return result

    return run


@pytest.fixture
def app_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "shop", None)
    monkeypatch.delitem(sys.modules, "shop")
    return tmp_path


@pytest.fixture
def worker(app_folder: Path, db_url: str, pljobs: Pljobs) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "pljobs",
        "worker",
        "--app",
        "shop:app",
        "-c",
        "5",
        "--shutdown-timeout",
        "1",
    ]
    with subprocess.Popen(
        command, env={**os.environ, "PLJOBS_URL": db_url}, cwd=app_folder, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # Somebody has to read, or the pipe fills.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        wait_until(lambda: answer(pljobs("workers", "--json")))
        yield process
        (app_folder / "enough").touch()
        process.terminate()
        process.wait(20)


def answer(result: Result) -> object:
    return json.loads(result.stdout)


def fields(result: Result) -> dict[str, object]:
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def status(pljobs: Pljobs, job_id: int = 1) -> object:
    return json.loads(pljobs("show", str(job_id), "--json").stdout)["job"]["status"]


def started(pljobs: Pljobs, task: str) -> int:
    job_id = json.loads(pljobs("defer", task, "--json").stdout)["job_id"]
    wait_until(lambda: status(pljobs, job_id) == "doing")
    return int(job_id)


# Deferring


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


def test_defer_with_an_app_takes_the_tasks_own_settings(pljobs: Pljobs, app_folder: Path) -> None:
    pljobs("defer", "spin", "--app", "shop:app")
    job = json.loads(pljobs("show", "1", "--json").stdout)["job"]
    assert (job["queue"], job["priority"], job["lock"]) == ("spinning", 3, "spin lock")


def test_defer_with_an_app_refuses_unknown_tasks_unless_told_otherwise(
    pljobs: Pljobs, app_folder: Path
) -> None:
    assert "'nope'" in pljobs("defer", "nope", "--app", "shop.app", exits=1).stderr
    pljobs("defer", "nope", "--app", "shop.app", "--unknown")


# Reading


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
    pljobs("defer", "a")
    conn.execute("DROP ROLE IF EXISTS cli_reader; CREATE ROLE cli_reader LOGIN")
    conn.execute("GRANT USAGE ON SCHEMA pljobs TO cli_reader")
    columns = (
        "id, status, waiting_for, queue, task, priority, attempts, crashes, created_at, scheduled_at,"
        " started_at, finished_at, worker_id, run_id, abort_requested, abort_requested_at"
    )
    conn.execute(f"GRANT SELECT ({columns}) ON pljobs.jobs TO cli_reader")
    try:
        url = ["--url", conn.info.dsn + " user=cli_reader"]
        assert len(json.loads(pljobs("list", "--json", *url).stdout)) == 1
        assert "permission denied" in pljobs("list", "--full", *url, exits=1).stderr
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
        "postgres for ann",
        "no need",
    ):
        assert part in told
    parts = fields(pljobs("show", "1", "--json"))
    assert list(parts) == ["job", "history", "requests"]


def test_show_of_a_deleted_job_tells_what_was_asked_and_ends_with_3(pljobs: Pljobs) -> None:
    pljobs("defer", "a")
    pljobs("cancel", "1", "--delete", "--actor", "ann")
    result = pljobs("show", "1", exits=3)
    assert "postgres for ann" in result.stdout
    assert fields(pljobs("show", "1", "--json", exits=3))["job"] is None


def test_queues_and_pausing(pljobs: Pljobs) -> None:
    pljobs("defer", "a", "--queue", "mail")
    assert pljobs("pause", "mail", "--reason", "provider down").stdout == "queue mail: paused\n"
    assert fields(pljobs("pause", "mail", "--json")) == {"queue": "mail", "outcome": "already_paused"}
    assert "by postgres: provider down" in pljobs("queues").stdout
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


# Cancel, retry, delete


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
    }
    assert fields(pljobs("cancel", "99", "--json", exits=3))["outcome"] == "not_found"


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
    assert pljobs("retry", "1", "--queue", "other").stdout == "job 1: requeued\n"
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
    assert told.startswith(f"job {job_id}: aborted; asked by postgres for ann at 20")
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
    result = pljobs("cancel", str(job_id), "--abort", "--wait", "--timeout", "1", exits=5)
    assert "the request stays" in result.stderr
    assert "aborted (by force)" in pljobs("cancel", str(job_id), "--force", "--wait").stdout
    assert status(pljobs, job_id) == "aborted"


def test_a_finished_job_is_refused_with_4(pljobs: Pljobs, worker: object) -> None:
    pljobs("defer", "add", '{"a": 1, "b": 2}')
    wait_until(lambda: status(pljobs) == "succeeded")
    assert pljobs("cancel", "1", exits=4).stdout == "job 1: already_finished\n"
    pljobs("retry", "1", exits=4)
    assert ["result", "3"] in [line.split() for line in pljobs("show", "1").stdout.splitlines()]


# The database


def test_migrate_installs_and_is_safe_to_run_again(empty_db_url: str) -> None:
    run = CliRunner().invoke
    url = ["--url", empty_db_url]
    assert run(cli, ["schema", "--check", *url]).exit_code == 1
    first = run(cli, ["migrate", *url])
    assert first.stdout.splitlines()[0] == "applied 0001_expand_core"
    again = run(cli, ["migrate", "--json", *url])
    assert json.loads(again.stdout) == {"applied": []}
    assert run(cli, ["schema", "--check", *url]).exit_code == 0
    assert "0001_expand_core" in run(cli, ["schema", *url]).stdout


def test_schema_check_says_what_differs_with_1(pljobs: Pljobs, conn: psycopg.Connection) -> None:
    conn.execute(
        "CREATE OR REPLACE FUNCTION pljobs.rescue_jobs() RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'"
    )
    assert "pljobs.rescue_jobs" in pljobs("schema", "--check", exits=1).stdout
    assert fields(pljobs("schema", "--check", "--json", exits=1))["ok"] is False


def test_healthcheck(pljobs: Pljobs, empty_db_url: str) -> None:
    assert "0 alive, 0 stalled" in pljobs("healthcheck").stdout
    assert fields(pljobs("healthcheck", "--json"))["ok"] is True
    assert "fewer than 1" in pljobs("healthcheck", "--min-workers", "1", exits=1).stderr
    assert "pljobs migrate" in pljobs("healthcheck", "--url", empty_db_url, exits=1).stderr


def test_prune_and_rescue(pljobs: Pljobs) -> None:
    pljobs("defer", "a")
    pljobs("cancel", "1")
    assert fields(pljobs("prune", "--older-than", "1d", "--json")) == {"jobs": 0, "history": 0}
    assert pljobs("prune", "--older-than", "0s", "--history").stdout == "deleted 1 jobs, 1 rows of history\n"
    assert "rescued 0 jobs" in pljobs("rescue").stderr
    assert answer(pljobs("rescue", "--json")) == []


# Trouble


def test_a_missing_schema_is_one_line(pljobs: Pljobs, empty_db_url: str) -> None:
    for command in (["list"], ["defer", "a"], ["cancel", "1"], ["queues"]):
        result = pljobs(*command, "--url", empty_db_url, exits=1)
        assert "pljobs migrate" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line(pljobs: Pljobs) -> None:
    for command in (["list"], ["migrate"], ["healthcheck"], ["pause", "q"]):
        result = pljobs(*command, "--url", "host=/is/not/there", exits=1)
        assert "can't reach the database" in result.stderr
        assert result.stderr.count("\n") == 1


def test_the_url_is_never_repeated_where_it_may_hold_a_password(pljobs: Pljobs) -> None:
    for url in ("postgres:/ann:secret@host/db", "postgresql://ann:secret@[::1/db"):
        assert "secret" not in pljobs("list", "--url", url, exits=2).output
    assert (
        "secret" not in pljobs("list", "--url", "postgresql://ann:secret@%2Fnot%2Fthere/db", exits=1).output
    )


def test_the_url_may_stand_before_the_command_and_wins_over_the_environment(
    pljobs: Pljobs, empty_db_url: str
) -> None:
    assert "pljobs migrate" in pljobs("--url", empty_db_url, "list", exits=1).stderr


def test_libpqs_own_variables_say_where_the_database_is(conn: psycopg.Connection) -> None:
    parts = conn.info.get_parameters()
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER"}
    environment = {name: str(parts[key]) for key, name in names.items() if key in parts}
    result = CliRunner().invoke(cli, ["list", "--json"], env=environment)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (None, "--app"),
        ("nowhere:app", "nowhere"),
        ("shop:nothing", "nothing"),
        ("shop:asyncio", "is no App"),
        ("broken:app", "ZeroDivisionError"),
        ("typo:app", "SyntaxError"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_one_line(
    pljobs: Pljobs, app_folder: Path, path: str | None, said: str
) -> None:
    (app_folder / "broken.py").write_text("1 / 0")
    (app_folder / "typo.py").write_text("def")
    result = pljobs("worker", *(["--app", path] if path else []), exits=1 if path else 2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--concurrency", "0"], ["--poll-interval", "0"], ["--queues", ","], ["--wat"]]
)
def test_a_workers_options_are_checked(pljobs: Pljobs, app_folder: Path, options: list[str]) -> None:
    pljobs("worker", "--app", "shop:app", *options, exits=2)


def test_without_click_and_rich_it_says_what_to_install() -> None:
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in ('click', 'rich') else find(name)\n"
        "from pljobs.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "pljobs: the command line needs click and rich: pip install 'pljobs[cli]'\n"


def test_help_lists_commands_and_exit_codes(pljobs: Pljobs) -> None:
    told = pljobs("--help").stdout
    for name in cli.commands:
        assert f"\n  {name} " in told
        assert pljobs(name, "--help").stdout.startswith("Usage:")
    for code in ("0  done", "3  not found", "4  refused", "5  timed out"):
        assert code in told


# The worker


def test_a_worker_does_what_there_is_and_ends_when_told_to_not_wait(
    pljobs: Pljobs, app_folder: Path, db_url: str
) -> None:
    pljobs("defer", "add", '{"a": 1, "b": 2}')
    pljobs("defer", "add", '{"a": 1, "b": 2}', "--queue", "other")
    command = [sys.executable, "-m", "pljobs", "--url", db_url, "worker", "--app", "shop:app"]
    options = [
        "--one-shot",
        "-q",
        "default, more",
        "--name",
        "w",
        "--log-json",
        "-v",
        "--delete-jobs",
        "never",
    ]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=app_folder, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert any(record["logger"].startswith("pljobs") for record in records)
    assert [row["status"] for row in json.loads(pljobs("list", "--json").stdout)] == ["todo", "succeeded"]


def test_a_worker_without_a_schema_says_so(app_folder: Path, empty_db_url: str) -> None:
    for command in (["worker", "--app", "shop:app"], ["manager"]):
        done = subprocess.run(
            [sys.executable, "-m", "pljobs", *command, "--url", empty_db_url],
            capture_output=True, text=True, cwd=app_folder, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 1
        assert "pljobs migrate" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_manager_runs_until_it_is_stopped(db_url: str, conn: psycopg.Connection) -> None:
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 s')")
    conn.execute("SELECT pljobs.defer_job('a')")
    conn.execute("SELECT pljobs.fetch_jobs_v1(1)")
    conn.execute("UPDATE pljobs.worker SET expires_at = now() - interval '1 s'")
    with subprocess.Popen(
        [sys.executable, "-m", "pljobs", "manager", "--url", db_url, "--interval", "1"]
    ) as manager:
        wait_until(lambda: conn.execute("SELECT status FROM pljobs.jobs").fetchall() == [("todo",)])
        manager.terminate()
        assert manager.wait(10) == 0


def in_a_terminal(url: str, *arguments: str, columns: int = 120) -> str:
    """Run the command in a terminal of its own, and return what it shows."""
    ours, its = pty.openpty()
    environment = {
        **os.environ,
        "PLJOBS_URL": url,
        "COLUMNS": str(columns),
        "TERM": "xterm",
        "PYTHONUTF8": "1",
    }
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "pljobs", *arguments], stdout=its, stderr=its, env=environment
    )
    os.close(its)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # its end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(20) == 0
    return shown.decode()
