"""The worker in Node.js, alone and beside one in Python: jobs, aborts, its lease, its end, a bad line."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pljobs.embedded import PORT, SUPERUSER, Server
from proxy import running_proxy
from waiting import wait_until
from workers import DEADLINE, HASTY, LASTING, SIDE_TABLE, Command, defer, process, side, until_started

Conn = psycopg.Connection[Any]

HERE = Path(__file__).parent
NODE = HERE.parent / "examples" / "node"
TASKS = HERE / "node_tasks.mjs"
# Polls, and renews its lease, so rarely that it takes a notification or a timer of its own to make it look.
PATIENT: Mapping[str, object] = {"LEASE": 3600, "POLL": 600}
# Looks often, and is lost by nothing but lose(): a lease that a test can wait for, a busy machine loses.
LOOKS: Mapping[str, object] = {"LEASE": 600, "POLL": 0.1}


@pytest.fixture(scope="module", autouse=True)
def _node() -> None:
    try:
        found = subprocess.run(
            ["node", "--eval", "require('pg')"], cwd=NODE, capture_output=True, text=True, check=False
        )
        missing = "" if found.returncode == 0 else f"the module pg: {found.stderr}"
    except FileNotFoundError:
        missing = "the command node"
    if missing:
        pytest.fail(
            "These tests need Node.js 18 or newer with the module pg. Run tools/bootstrap_node; or install"
            " Debian's nodejs and node-pg; or call npm install in examples/node."
            f" There is not: {missing}",
            pytrace=False,
        )


@pytest.fixture(autouse=True)
def _side_table(conn: Conn) -> None:
    conn.execute(SIDE_TABLE)


@contextlib.contextmanager
def node(
    server: Server,
    conn: Conn,
    tmp_path: Path,
    settings: Mapping[str, object],
    *,
    name: str = "node",
    queue: str | None = None,
) -> Iterator[Command]:
    """Run the example; wait until it works; kill it at the end if it still lives."""
    env = {
        "PGHOST": server.base,
        "PGUSER": SUPERUSER,
        "PGDATABASE": conn.info.dbname,
        "SIDE_HOST": server.base,
        "SIDE_PORT": PORT,
        **settings,
    }
    command = ["node", str(NODE / "worker.mjs"), str(TASKS), *([queue] if queue else [])]
    worker = Command(command, tmp_path / f"{name}.log", {key: str(value) for key, value in env.items()})
    try:
        worker.until_said("started")
        yield worker
    finally:
        worker.kill()


def go(conn: Conn) -> None:
    conn.execute("INSERT INTO public.side (what) VALUES ('go')")


def job(conn: Conn, job_id: int) -> dict[str, Any]:
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        found = cursor.execute("SELECT * FROM pljobs.jobs WHERE id = %s", [job_id]).fetchone()
    assert found is not None
    return found


def until_status(conn: Conn, job_id: int, status: str) -> dict[str, Any]:
    wait_until(lambda: job(conn, job_id)["status"] == status, DEADLINE, f"job {job_id} becomes {status}")
    return job(conn, job_id)


def request(conn: Conn, job_id: int) -> dict[str, Any]:
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        found = cursor.execute("SELECT * FROM pljobs.requests WHERE job_id = %s", [job_id]).fetchone()
    assert found is not None
    return found


def lose(conn: Conn) -> None:
    """Have the lease of a dead or frozen worker be over: again, if a heartbeat was under way to renew it."""
    idle = (
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
        " AND application_name LIKE 'pljobs node %'"
    )
    wait_until(lambda: conn.execute(idle).fetchone() == (True,), DEADLINE, "its last call is over")
    conn.execute("UPDATE pljobs.worker SET expires_at = clock_timestamp() - interval '1 s'")


def states(conn: Conn) -> list[str]:
    return [state for (state,) in conn.execute("SELECT state FROM pljobs.workers ORDER BY id")]


def test_the_node_worker_is_short_and_uses_only_the_contract() -> None:
    text = (NODE / "worker.mjs").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 245
    page = (HERE.parent / "docs" / "sql-contract.md").read_text()
    called = set(re.findall(r"pljobs\.(\w+)\(", text))
    assert len(called) >= 9
    for name in called:
        assert re.search(rf"^{name}\(", page, re.MULTILINE), f"the contract does not state {name}"


def test_workers_in_node_and_python_share_a_queue_and_run_each_job_once(
    server: Server, db_url: str, conn: Conn, tmp_path: Path
) -> None:
    with (
        node(server, conn, tmp_path, {"CONCURRENCY": 4}),
        process(db_url, tmp_path, concurrency=4),
    ):
        # As many as both together have slots, none of which is free before all have started: both take part.
        first = [defer(conn, "until_told") for _ in range(8)]
        for job_id in first:
            until_started(conn, job_id)
        many = [defer(conn, "quick") for _ in range(300)]
        go(conn)
        for job_id in first + many:
            until_status(conn, job_id, "succeeded")
    told = conn.execute("SELECT job_id, what, count(*) FROM public.side WHERE job_id > 0 GROUP BY 1, 2")
    assert sorted(told.fetchall()) == sorted(
        (job_id, what, 1) for job_id in first + many for what in ("start", "end")
    )
    parts = conn.execute("SELECT count(DISTINCT job_id) FROM public.side WHERE job_id > 0 GROUP BY pid")
    taken = [count for (count,) in parts]
    assert len(taken) == 2
    assert sum(taken) == len(first + many)
    assert conn.execute("SELECT count(*) FROM pljobs.jobs WHERE attempts <> 1").fetchone() == (0,)


def test_it_runs_jobs_of_its_queues_and_leaves_tasks_that_it_does_not_know(
    server: Server, conn: Conn, tmp_path: Path
) -> None:
    ours, others, unknown = (
        defer(conn, "quick", queue="mail"),
        defer(conn, "quick"),
        defer(conn, "of another worker", queue="mail", priority=1),
    )
    with node(server, conn, tmp_path, PATIENT, queue="mail"):
        assert until_status(conn, ours, "succeeded")["result"] == "node"
        # A new one of its queue is heard of, by its notification.
        until_status(conn, defer(conn, "quick", queue="mail"), "succeeded")
    assert [job(conn, other)["status"] for other in (others, unknown)] == ["todo", "todo"]


def test_an_abort_is_heard_at_once_and_says_who_asked(server: Server, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "forever")
    with node(server, conn, tmp_path, PATIENT):
        until_started(conn, job_id)
        answer = conn.execute(
            "SELECT pljobs.cancel_job(%s, abort => true, reason => 'sends twice', actor => 'ann')", [job_id]
        ).fetchone()
        assert answer == ("abort_requested",)
        until_status(conn, job_id, "aborted")
    assert side(conn, job_id) == ["start", "cancelled"]
    asked = request(conn, job_id)
    assert asked["delivered_at"] is not None
    assert {name: asked[name] for name in ("requested_by", "actor", "reason", "level", "resolution")} == {
        "requested_by": "postgres",
        "actor": "ann",
        "reason": "sends twice",
        "level": 1,
        "resolution": "aborted",
    }


def test_what_never_settles_is_given_up_and_the_worker_ends(
    server: Server, conn: Conn, tmp_path: Path
) -> None:
    deaf, other = defer(conn, "never"), defer(conn, "until_told")
    with node(server, conn, tmp_path, PATIENT) as worker:
        until_started(conn, deaf)
        until_started(conn, other)
        conn.execute(
            "SELECT pljobs.cancel_job(%s, abort => true, grace => '0.2 s', term_grace => '0.2 s')", [deaf]
        )
        until_status(conn, deaf, "aborted")
        next_one = defer(conn, "quick")
        go(conn)
        until_status(conn, other, "succeeded")
        assert worker.wait() == 6
    asked = request(conn, deaf)
    assert (asked["resolution"], asked["level"]) == ("abandoned", 4)
    assert job(conn, next_one)["status"] == "todo"


def test_a_run_over_its_timeout_fails_in_time(server: Server, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "forever", timeout="0.3 s")
    with node(server, conn, tmp_path, PATIENT):
        assert "timeout" in until_status(conn, job_id, "failed")["message"]
    assert request(conn, job_id)["source"] == "deadline"


def test_progress_is_seen_while_the_job_runs(server: Server, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "forever")
    with node(server, conn, tmp_path, LOOKS):
        wait_until(lambda: job(conn, job_id)["progress"] == 0.5, DEADLINE, "its progress is stored")
        assert job(conn, job_id)["progress_message"] == "half of it"


def test_what_a_task_produces_keeps_no_job_from_ending(server: Server, conn: Conn, tmp_path: Path) -> None:
    nul, bad, good = defer(conn, "returns_nul"), defer(conn, "fails"), defer(conn, "quick")
    with node(server, conn, tmp_path, PATIENT):
        assert "can't be stored" in until_status(conn, nul, "succeeded")["message"]
        # Retried once; then it is asked whether to, and that fails.
        ended = until_status(conn, bad, "failed")
        assert (ended["attempts"], "no way to retry" in ended["error"]) == (2, True)
        until_status(conn, good, "succeeded")


def test_killed_it_loses_its_jobs_to_others_after_its_lease(
    server: Server, db_url: str, conn: Conn, tmp_path: Path
) -> None:
    job_id = defer(conn, "until_told")
    with node(server, conn, tmp_path, LOOKS) as worker:
        until_started(conn, job_id)
        worker.kill()
    lose(conn)
    go(conn)
    # Rescues when it begins.
    with process(db_url, tmp_path, **LASTING):
        ended = until_status(conn, job_id, "succeeded")
    assert (ended["attempts"], ended["crashes"]) == (2, 1)
    assert side(conn, job_id) == ["start", "start", "end"]


def test_what_it_reports_after_it_stood_still_is_stale(server: Server, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "deaf")
    with node(server, conn, tmp_path, LOOKS) as frozen:
        until_started(conn, job_id)
        first = job(conn, job_id)["run_id"]
        frozen.signal(signal.SIGSTOP)
        lose(conn)
        assert conn.execute("SELECT pljobs.rescue_jobs()").fetchone() == (1,)
        with node(server, conn, tmp_path, LOOKS, name="second") as second:
            until_started(conn, job_id, times=2)
            frozen.signal(signal.SIGCONT)
            frozen.until_said(f"job {job_id}: is told to stop")
            frozen.until_said("registers again")
            go(conn)
            frozen.until_said(f"job {job_id}: stale, run {first}")
            second.until_said(f"job {job_id}: succeeded")
            second.signal(signal.SIGTERM)
            assert second.wait() == 0
        # And it goes on.
        until_status(conn, defer(conn, "quick"), "succeeded")
        assert sorted(states(conn)) == ["alive", "stopped"]
    ended = job(conn, job_id)
    assert (ended["status"], ended["attempts"], ended["crashes"]) == ("succeeded", 2, 1)
    assert side(conn, job_id) == ["start", "start", "end", "end"]


def test_stopped_it_lets_its_jobs_end_and_starts_no_other(server: Server, conn: Conn, tmp_path: Path) -> None:
    running = defer(conn, "until_told")
    with node(server, conn, tmp_path, {**PATIENT, "GRACE": 600}) as worker:
        until_started(conn, running)
        worker.signal(signal.SIGTERM)
        worker.until_said("stops, with 1 jobs")
        waiting = defer(conn, "quick")
        go(conn)
        assert worker.wait() == 0
    assert job(conn, running)["status"] == "succeeded"
    assert job(conn, waiting)["status"] == "todo"
    assert states(conn) == ["stopped"]


def test_while_it_drains_an_abort_is_heard(server: Server, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "forever")
    with node(server, conn, tmp_path, {**PATIENT, "GRACE": 600}) as worker:
        until_started(conn, job_id)
        worker.signal(signal.SIGTERM)
        worker.until_said("stops, with 1 jobs")
        conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id])
        assert worker.wait() == 0
    assert job(conn, job_id)["status"] == "aborted"


@pytest.mark.parametrize("grace", [0.1, 600])
def test_what_does_not_end_in_time_goes_back_and_is_not_charged(
    server: Server, conn: Conn, tmp_path: Path, grace: float
) -> None:
    job_id = defer(conn, "forever")
    with node(server, conn, tmp_path, {**PATIENT, "GRACE": grace}) as worker:
        until_started(conn, job_id)
        worker.signal(signal.SIGTERM)
        if grace == 600:
            worker.until_said("stops, with 1 jobs")
            worker.signal(signal.SIGINT)
        assert worker.wait() == 0
    ended = job(conn, job_id)
    assert (ended["status"], ended["attempts"], ended["crashes"]) == ("todo", 0, 0)


def test_cut_connections_are_made_anew_and_no_job_suffers(server: Server, conn: Conn, tmp_path: Path) -> None:
    running = defer(conn, "until_told")
    with node(server, conn, tmp_path, {"LEASE": 20, "POLL": 600}) as worker:
        until_started(conn, running)
        # Polls in ten minutes: so it listens now.
        until_status(conn, defer(conn, "quick"), "succeeded")
        cut = conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'pljobs node %'"
        )
        assert cut.fetchall() == [(True,), (True,)]
        worker.until_said("control: connected again")
        # Heard of by a notification, on the new connection.
        until_status(conn, defer(conn, "quick"), "succeeded")
        go(conn)
        until_status(conn, running, "succeeded")
    assert side(conn, running) == ["start", "end"]
    assert conn.execute("SELECT count(*) FROM pljobs.workers").fetchone() == (1,)


def test_a_report_whose_answer_is_lost_is_sent_again(server: Server, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "until_told")
    with running_proxy(server) as proxy:
        through = {"PGHOST": "127.0.0.1", "PGPORT": proxy.port}
        with node(server, conn, tmp_path, {**through, "LEASE": 12, "POLL": 0.2}) as worker:
            until_started(conn, job_id)
            proxy.swallow_reply_to = b"finish_jobs_v1"
            go(conn)
            until_status(conn, job_id, "succeeded")
            worker.until_said(f"job {job_id}: succeeded")
            until_status(conn, defer(conn, "quick"), "succeeded")
        assert proxy.swallowed > 0
    assert side(conn, job_id) == ["start", "end"]


@pytest.mark.slow
def test_while_the_database_does_not_answer_its_jobs_stop_before_others_may_start_them(
    server: Server, db_url: str, conn: Conn, tmp_path: Path
) -> None:
    job_id = defer(conn, "forever")
    with running_proxy(server) as proxy:
        through = {"PGHOST": "127.0.0.1", "PGPORT": proxy.port}
        # Both leases are long for a machine that stalls; the second worker rescues each third of its own.
        with node(server, conn, tmp_path, {**through, "LEASE": 12, "POLL": 0.2}) as worker:
            until_started(conn, job_id)
            with process(db_url, tmp_path, **HASTY | {"stalled_worker_timeout": 15.0}):
                proxy.swallow_up = True
                worker.until_said(f"job {job_id}: is told to stop: the lease could not be renewed")
                until_started(conn, job_id, times=2)
                assert side(conn, job_id) == ["start", "cancelled", "start"]
                proxy.heal()
                worker.until_said(f"job {job_id}: stale")
                worker.until_said("heartbeat: works again")
            # Each trouble is said once, however often it is tried.
            said = [line for line in worker.log.read_text().splitlines() if line.startswith("heartbeat:")]
            assert len(said) == len(set(said))


def test_a_database_that_speaks_another_contract_is_refused(
    server: Server, conn: Conn, tmp_path: Path
) -> None:
    conn.execute("ALTER FUNCTION pljobs.get_contract_v1() RENAME TO get_contract_v0")
    with (
        pytest.raises(AssertionError, match="ended with 1"),
        node(server, conn, tmp_path, PATIENT),
    ):
        pass
    assert "install pljobs 0.2.0 or newer" in (tmp_path / "node.log").read_text()
