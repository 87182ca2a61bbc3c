"""W5 and W6: a job that takes its worker along, and the rescue of what lost workers held."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from chaos.rig import OPTIONS, Rig
from chaos.rows import row
from oracle import MAX_CRASHES, Violation
from waiting import wait_until
from workers import HERE, Command

Conn = psycopg.Connection[Any]
PROCESSES = 3
GOOD_SHORT, GOOD_LONG = 60, 200
ORPHANS = 500
LEFT_TO_END = 120.0


@row("W5", "poison job: exits, is killed, takes all memory", invariants="I1-I4, I7-I11, I14",
     push=1, long=20)  # fmt: skip
def poison(rig: Rig) -> None:
    rig.expect_traceback("MemoryError|out of memory")
    task = rig.random.choice(["kills_itself", "is_killed", "memory_bomb"]) if rig.long else "is_killed"
    name = rig.next_name()
    rig.watch(
        Command(
            [
                sys.executable, str(HERE / "supervised_workers.py"), rig.url,
                json.dumps({**OPTIONS, "name": name}), str(PROCESSES),
            ],
            rig.folder / f"{name}.log", {"PYTHONUNBUFFERED": "1"},
        )
    )  # fmt: skip
    good = GOOD_LONG if rig.long else GOOD_SHORT
    place = rig.random.randrange(good)
    poisonous = 0
    for number in range(good):
        if number == place:
            poisonous = rig.defer(task)
        rig.defer("work", '{"seconds": 0.05}')
    cancelled = rig.random.random() < 0.5
    if cancelled:
        wait_until(lambda: _crashes(rig, poisonous) > 0 or _status(rig, poisonous) == "failed", LEFT_TO_END)
        rig.cancel(poisonous)
    rig.settle(LEFT_TO_END)
    rig.notes[f"{task}, {'cancelled' if cancelled else 'let be'}"] += 1
    rig.harms["crash"] += _crashes(rig, poisonous)
    status, message = rig.rows("SELECT status, message FROM pljobs.jobs WHERE id = %s", poisonous)[0]
    if cancelled and status != "failed":
        if status not in {"cancelled", "aborted"}:
            raise Violation("I7", f"a poison job that was cancelled is {status}: {message}")
    elif status != "failed" or (task != "memory_bomb" and message != f"worker lost {MAX_CRASHES} times"):
        raise Violation("I9", f"a poison job is {status}: {message}")
    bad = rig.rows("SELECT id, status, message FROM pljobs.jobs WHERE status <> 'succeeded' ORDER BY id")
    if len(bad) != 1:
        raise Violation("I9", f"not only the poison job {poisonous} has not succeeded: {bad}")
    rig.check()


@row("W6", "two and five rescuers at once", invariants="I1-I4, I7, I9, I14", push=1, long=60)
def rescuers(rig: Rig) -> None:
    """Rescue jobs whose finishes arrive at the same time, and cancels; all in SQL, by many sessions."""
    with rig.connect() as conn:
        lost = [_register(conn) for _ in range(5)]
        conn.execute("SELECT pljobs.defer_job('quick') FROM generate_series(1, %s)", [ORPHANS])
        held = [run for worker_id in lost for run in _fetch(conn, worker_id, ORPHANS // len(lost))]
        assert len(held) == ORPHANS
        _bodies(conn, held)
        conn.execute("UPDATE pljobs.worker SET expires_at = expires_at - interval '1 h'")
    rig.random.shuffle(held)
    finishing, cancelling = held[: ORPHANS // 2], held[ORPHANS // 2 : ORPHANS // 2 + 40]
    number = 5 if rig.seed % 2 else 2
    rig.harms["rescuer"] += number
    rescued: list[int] = []
    answers: list[tuple[int, str]] = []

    def rescue(conn: Conn) -> None:
        # As many as it takes: those that somebody holds are skipped.
        while conn.execute(
            "SELECT FROM pljobs.jobs WHERE status = 'doing' AND worker_id = ANY (%s) LIMIT 1", [lost]
        ).fetchall():
            # In small batches, so that what else happens comes in between.
            rescued.extend(job_id for (job_id, _) in conn.execute("SELECT * FROM pljobs.rescue_jobs_v1(20)"))

    def finish(conn: Conn) -> None:
        for first in range(0, len(finishing), 5):
            answers.extend(_finish(conn, finishing[first : first + 5]))

    def cancel(_: Conn) -> None:
        for job_id, _run_id in cancelling:
            rig.cancel(job_id)

    _at_once(rig, [rescue] * number + [finish, cancel])
    twice = [job_id for job_id, times in Counter(rescued).items() if times > 1]
    if twice:
        raise Violation("I3", f"rescued twice: {twice}")
    stale = {run_id for run_id, status in answers if status == "stale"}
    told = set(rig.rows("SELECT run_id FROM pljobs.job_event WHERE kind = 'rescued'"))
    if not {(run_id,) for run_id in stale} <= told:
        raise Violation("I3", f"told to be stale, and not rescued: {stale}, {told}")
    rig.notes["rescued"] += len(rescued)
    rig.notes["finished"] += len(answers) - len(stale)
    with rig.connect() as conn:
        worker_id = _register(conn)
        while runs := _fetch(conn, worker_id, 100):
            _bodies(conn, runs)
            _finish(conn, runs)
    rig.settle()
    # Their lease was aged by an hour.
    rig.check(without={"I8"})


def _crashes(rig: Rig, job_id: int) -> int:
    return rig.count("SELECT crashes FROM pljobs.jobs WHERE id = %s", job_id)


def _status(rig: Rig, job_id: int) -> str:
    return str(rig.rows("SELECT status FROM pljobs.jobs WHERE id = %s", job_id)[0][0])


def _register(conn: Conn) -> int:
    found = conn.execute("SELECT pljobs.register_worker_v1('sql', 'here', 1, lease => '1 h')").fetchone()
    assert found is not None
    return int(found[0])


def _fetch(conn: Conn, worker_id: int, jobs: int) -> list[tuple[int, int]]:
    query = "SELECT f.job_id, f.run_id FROM pljobs.fetch_jobs_v1(%s, %s) AS f"
    return [(job_id, run_id) for job_id, run_id in conn.execute(query, [worker_id, jobs])]


def _bodies(conn: Conn, runs: list[tuple[int, int]]) -> None:
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO public.side (job_id, run_id, what) VALUES (%s, %s, %s)",
            [(*run, what) for run in runs for what in ("start", "end")],
        )


def _finish(conn: Conn, runs: list[tuple[int, int]]) -> list[tuple[int, str]]:
    ends = [{"job_id": job_id, "run_id": run_id, "outcome": "succeeded"} for job_id, run_id in runs]
    query = "SELECT a.run_id, a.status FROM pljobs.finish_jobs_v1(%s) AS a"
    return [(run_id, status) for run_id, status in conn.execute(query, [Jsonb(ends)])]


def _at_once(rig: Rig, deeds: list[Callable[[Conn], None]]) -> None:
    """Do all of them, each in a thread and session of its own, which begin together."""
    gate = threading.Barrier(len(deeds))
    failures: list[BaseException] = []

    def do(deed: Callable[[Conn], None]) -> None:
        try:
            with rig.connect() as conn:
                gate.wait(30)
                deed(conn)
        except BaseException as error:
            failures.append(error)
            gate.abort()

    threads = [threading.Thread(target=do, args=[deed]) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "still at it"
