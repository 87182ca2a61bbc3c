"""The command line: the database itself, trouble, workers and the manager."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from cli_fixtures import Pljobs, answer, app_folder, bare_environment, fields, pljobs, started, worker
from pljobs import App, cli_worker
from pljobs.cli_commands import cli
from pljobs.exceptions import WorkerTainted
from pljobs.release import version
from waiting import DEADLINE, wait_until


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
    assert "function rescue_jobs(): differs" in pljobs("schema", "--check", exits=1).stdout
    assert fields(pljobs("schema", "--check", "--json", exits=1))["ok"] is False


def test_schema_check_tells_an_operator_that_the_schema_is_of_another_release(
    pljobs: Pljobs, conn: psycopg.Connection, db_url: str
) -> None:
    check = ["schema", "--check", "--url", make_conninfo(db_url, options="-c role=pljobs_operator")]
    assert "is this release's" in pljobs(*check).stdout
    body = conn.execute("SELECT pg_get_functiondef('pljobs.get_contract_v1()'::regprocedure)").fetchone()
    assert body is not None
    conn.execute(body[0].replace(f"'{version()}'", "'0.3.3'").encode())
    said = pljobs(*check, exits=1).stdout
    assert said.startswith(f"schema pljobs: is of release 0.3.3, and this is {version()}; ")


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
    pljobs("defer", "a")
    pljobs("cancel", "2")
    assert pljobs("prune", "--older-than", "0s", "--archive").stdout == "archived 1 jobs\n"
    assert "rescued 0 jobs" in pljobs("rescue").stderr
    assert answer(pljobs("rescue", "--json")) == []


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


def test_a_worker_does_what_there_is_and_ends_when_told_to_not_wait(
    pljobs: Pljobs, app_folder: Path, db_url: str
) -> None:
    pljobs("defer", "add", '{"a": 1, "b": 2}')
    pljobs("defer", "add", '{"a": 1, "b": 2}', "--queue", "other")
    command = [sys.executable, "-m", "pljobs", "--url", db_url, "worker", "-a", "shop:app"]
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
        # By procrastinate's names.
        "--fetch-job-polling-interval",
        "0.2",
        "--abort-job-polling-interval",
        "0.2",
        "--shutdown-graceful-timeout",
        "1",
    ]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=app_folder, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert any(record["logger"].startswith("pljobs") for record in records)
    assert [row["status"] for row in json.loads(pljobs("list", "--json").stdout)] == ["todo", "succeeded"]


def test_a_thread_that_an_aborted_task_has_left_does_not_hold_the_worker(
    pljobs: Pljobs, worker: subprocess.Popen[str]
) -> None:
    job_id = started(pljobs, "leave_a_thread")
    pljobs("cancel", str(job_id), "--abort", "--wait", "20")
    worker.terminate()
    assert worker.wait(20) == 0


AT_EXIT = """
import atexit, threading

def flush():
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()
    print("flushed")

atexit.register(flush)
"""


def test_what_an_application_does_at_exit_may_take_longer_than_threads_have(
    pljobs: Pljobs, app_folder: Path, db_url: str
) -> None:
    with (app_folder / "shop.py").open("a") as file:
        file.write(AT_EXIT)
    done = subprocess.run(
        [sys.executable, "-m", "pljobs", "--url", db_url, "worker", "-a", "shop:app", "--one-shot"],
        capture_output=True, text=True, cwd=app_folder, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "flushed\n"), done.stderr
    assert "threads" not in done.stderr


IN_PROCESS = """
import sys, threading
from pljobs.cli_commands import cli

print(cli.main(["--url", sys.argv[1], "worker", "-a", "shop:app", *sys.argv[2:]], standalone_mode=False))
print("pljobs-leave" in [thread.name for thread in threading.enumerate()])
"""


def test_a_worker_command_within_another_program_does_not_end_it(
    pljobs: Pljobs, app_folder: Path, db_url: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_PROCESS, db_url, "--one-shot"],
        capture_output=True, text=True, cwd=app_folder, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "None\nFalse\n"), done.stderr


def test_a_tainted_worker_within_another_program_ends_with_6_alone(
    pljobs: Pljobs, app_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_tainted(_app: App, **_options: object) -> None:
        raise WorkerTainted("worker 1 has stopped: it gave up a job")

    monkeypatch.setattr(App, "run_worker_async", is_tainted)
    monkeypatch.setattr(cli_worker, "set_up", lambda *_args, **_options: None)
    assert "it gave up a job" in pljobs("worker", "-a", "shop:app", exits=6).stderr
    # It leaves its loop as it is: to close it would be to wait for the task that can't be stopped.
    asyncio.get_event_loop_policy().get_event_loop().close()
    asyncio.set_event_loop(None)


def test_a_worker_without_a_schema_says_so(app_folder: Path, empty_db_url: str) -> None:
    for command in (["worker", "--app", "shop:app"], ["manager"]):
        done = subprocess.run(
            [sys.executable, "-m", "pljobs", *command, "--url", empty_db_url],
            capture_output=True, text=True, cwd=app_folder, check=False, timeout=120,
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
        assert manager.wait(DEADLINE) == 0
