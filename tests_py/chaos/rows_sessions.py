"""B1, T1, T2: poolers, roles with odd defaults, and people who leave a transaction open."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from chaos.rig import Rig
from chaos.rows import row
from chaos.rows_network import BRISK, LOADED, hold, measured, started, status_of
from pgbouncer import folder_for, pgbouncer
from pljobs import App
from pljobs.exceptions import ConnectorException
from waiting import wait_until

# Whatever a DBA may have set for a role. What is set for producers to end after a time, they repeat.
SETTINGS = (
    "statement_timeout = '50ms'",
    "lock_timeout = '10ms'",
    "idle_in_transaction_session_timeout = '1s'",
    "idle_session_timeout = '1s'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "default_transaction_deferrable = on",
    "search_path = 'nowhere'",
    "search_path = 'public', 'pg_catalog'",
    "datestyle = 'German, DMY'",
    "intervalstyle = 'sql_standard'",
    "intervalstyle = 'iso_8601'",
    "timezone = 'Asia/Kathmandu'",
    "timezone = '<+1245>-12:45'",
    "bytea_output = 'escape'",
    "row_security = off",
    "standard_conforming_strings = off",
    "client_encoding = 'LATIN1'",
    "array_nulls = off",
    "transform_null_equals = on",
    "quote_all_identifiers = on",
    "extra_float_digits = -15",
    "xmloption = 'document'",
    "client_min_messages = 'debug1'",
    "synchronous_commit = off",
    "enable_indexscan = off",
    "plpgsql.variable_conflict = 'use_column'",
    "plpgsql.extra_errors = 'all'",
)
# All at once, as far as they can be.
TOGETHER = [SETTINGS[at] for at in (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 25)]
TASKS: list[tuple[str, dict[str, Any]]] = [
    ("quick", {}),
    ("work", {"seconds": 0.05}),
    ("work", {"fail": True}),
    ("sync_work", {"seconds": 0.1}),
]
ROLE = "chaos_member"
_numbers = itertools.count(1)
T = TypeVar("T")


@row("T1", "roles with hostile defaults", invariants="I1-I7, I9-I11", push=1, long=len(SETTINGS))
def hostile_defaults(rig: Rig) -> None:
    """One setting after the other; in the short lane most of them at once."""
    rig.allow("57P05", "40001")
    chosen = [SETTINGS[rig.seed % len(SETTINGS)]] if rig.long else TOGETHER
    with _member(rig, chosen) as url:
        for _ in range(2):
            rig.worker(url, **BRISK)
        rig.await_workers()
        app = App(url)
        with app.open():
            _work_with(rig, app, 200 if rig.long else 30)
        rig.harms["; ".join(chosen) if rig.long else "settings"] += len(chosen)
        rig.settle()
        rig.check()
        if "timeout = '10ms'" not in str(chosen):
            refused = [worker for worker in rig._started if worker.said("Can't report the end of job")]
            hold(not refused, "T1", f"a report was refused: {[w.log.read_text()[-2000:] for w in refused]}")


@contextlib.contextmanager
def _member(rig: Rig, settings: list[str]) -> Iterator[str]:
    """Make a role that may all, with these settings; yield its way to the rig's database."""
    role = f"{ROLE}_{next(_numbers)}"
    with rig.connect() as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN; GRANT pljobs_operator TO {role}".encode())
        for setting in settings:
            conn.execute(f"ALTER ROLE {role} SET {setting}".encode())
    yield make_conninfo(rig.url, user=role)


def _repeated(rig: Rig, ask: Callable[[], T]) -> T:
    """Do what a producer does whose statements may not take long: once more."""
    for _ in range(100):
        try:
            return ask()
        except ConnectorException as error:
            if error.sqlstate not in {"57014", "55P03"}:
                raise
            rig.notes[f"repeated after {error.sqlstate}"] += 1
    raise AssertionError("never in time")


def _work_with(rig: Rig, app: App, jobs: int) -> None:
    """Defer, cancel and read, as an application does."""
    manager = app.job_manager
    made: list[int] = []
    for number in range(jobs):
        task, args = rig.random.choice(TASKS)
        deferrer = app.configure_task(
            task,
            lock=rig.random.choice([None, None, "a"]),
            timeout=3600,
            start_by=3600,
            idempotency_key=f"{rig.seed} {number}",
        )
        made.append(_repeated(rig, lambda: deferrer.defer(**args)))  # noqa: B023
        if number % 5 == 0:
            job_id = rig.random.choice(made)
            result = _repeated(
                rig,
                lambda: manager.cancel_job(job_id, abort=True, grace=60, reason="\\ ' \N{CAT FACE}"),  # noqa: B023
            )
            # What was cut off changed nothing, so that the last answer is the only one.
            rig.answers[job_id].append(result.outcome)
            rig.notes[result.outcome] += 1
        if number % 20 == 0:
            job = _repeated(rig, lambda: manager.get_job(made[-1]))
            hold(job.created_at is not None and job.created_at.tzinfo is not None, "T1", f"{job} has no time")
            hold(job.timeout is not None and job.timeout.total_seconds() == 3600, "T1", f"{job}: its timeout")
    root = _repeated(rig, lambda: app.configure_task("forever").defer())
    wait_until(lambda: started(rig, root), 60, "it runs")
    _repeated(rig, lambda: manager.cancel_tree(root, abort=True))
    rig.answers[root].append("abort_requested")


@row("T2", "a person's open transaction holds rows of cancelled jobs", invariants="I1-I11", push=1, long=4)
def open_transaction(rig: Rig) -> None:
    for _ in range(2):
        rig.worker(**BRISK)
    rig.await_workers()
    held = [rig.defer("until_told") for _ in range(4)]
    wait_until(lambda: started(rig, *held), LOADED, "they run")
    rolled_back = rig.random.random() < 0.5
    with psycopg.connect(rig.url) as person:
        for job_id in held:
            answer = person.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id]).fetchall()
            hold(answer == [("abort_requested",)], "I7", f"answered {answer}")
        rig.harms["rows held"] += len(held)
        # Their bodies end, and nobody can write that down.
        rig.rows("INSERT INTO public.side (what) VALUES ('go') RETURNING id")
        ended = "SELECT count(*) FROM public.side WHERE what = 'end' AND job_id = ANY (%s)"
        wait_until(lambda: rig.count(ended, held) == len(held), LOADED, "the bodies end")
        began = time.monotonic()
        fresh = rig.load(10)
        beaten = rig.rows("SELECT clock_timestamp()")[0][0]
        seconds = 20 if rig.long else 6

        def beats() -> bool:
            return rig.rows(
                "SELECT bool_and(w.state = 'alive' AND w.heartbeat_at > %s + %s * interval '1 s')"
                " FROM pljobs.workers AS w",
                beaten, seconds,
            ) == [(True,)]  # fmt: skip

        # For several leases.
        wait_until(beats, seconds + 20, "the workers' hearts beat on")
        rig.rows("SELECT pljobs.rescue_jobs()")
        hold(all(status_of(rig, job_id) == "doing" for job_id in held), "I3", "a held job has moved")
        wait_until(lambda: started(rig, *fresh[:3]), 30, "others go on")
        measured(rig, "held for ms", began)
        if rolled_back:
            person.rollback()
        else:
            person.commit()
            for job_id in held:
                rig.answers[job_id].append("abort_requested")
    rig.notes["rolled back" if rolled_back else "committed"] += 1
    wait_until(lambda: all(status_of(rig, job_id) != "doing" for job_id in held), 30, "they end")
    for job_id in held:
        hold(status_of(rig, job_id) == "succeeded", "I3", f"it had ended before: {status_of(rig, job_id)}")
        asked = rig.rows("SELECT resolution FROM pljobs.requests WHERE job_id = %s", job_id)
        hold(asked == ([] if rolled_back else [("finished_first",)]), "I5", f"the request: {asked}")
    crashes = rig.count("SELECT count(*) FROM pljobs.jobs WHERE crashes > 0")
    hold(crashes == 0, "I8", f"{crashes} jobs were rescued from workers that are alive")
    rig.settle()
    rig.check()


@row("B1", "everybody comes through PgBouncer in transaction mode", invariants="I1-I11", push=1, long=5)
def pooled(rig: Rig) -> None:
    listens = rig.random.random() < 0.5
    with folder_for() as folder, pgbouncer(rig.server, folder, "postgres") as pooler:
        url = pooler.url(rig.dbname, "postgres")
        for _ in range(3):
            rig.worker(url, **BRISK, listen_notify=listens)
        rig.await_workers()
        app = App(url)
        with app.open():
            _work_with(rig, app, 200 if rig.long else 30)
            for _ in range(10):
                rig.cancel_some()
                rig.load(4)
                rig.await_events(4, 0.2)
        rig.harms["PgBouncers"] += 1
        rig.settle()
        for worker in rig.workers if listens else []:
            worker.until_said("Notifications don't arrive on this connection")
        _leaves_no_settings(rig, url)
        rig.check()


def _leaves_no_settings(rig: Rig, url: str) -> None:
    """Check that whoever has the workers' server processes next finds them as they should be."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):  # as many as the pooler has
            conn = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
            found = conn.execute(
                "SELECT current_setting('lock_timeout'), current_setting('datestyle')"
            ).fetchall()
            hold(found == [("0", "ISO, MDY")], "B1", f"set for whoever comes next: {found}")
