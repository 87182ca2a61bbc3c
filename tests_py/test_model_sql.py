"""The SQL is the model: called at random, the functions answer and write what the model says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from psycopg.types.json import Jsonb

from model import JobModel
from pljobs.embedded import Server

OUTCOMES = st.sampled_from(["succeeded", "failed", "aborted", "interrupted", "killed", "abandoned"])
WORKER = st.sampled_from([0, 1])
JOB = st.sampled_from([0, 1])


@dataclass(slots=True)
class WorkerModel:
    id: int
    alive: bool = True
    stopped: bool = False
    tainted: bool = False


class Machine(RuleBasedStateMachine):
    """Call the functions at random, and the model beside them; all answers and rows must be the same."""

    conn: psycopg.Connection[Any]
    admin: psycopg.Connection[Any]

    @initialize(locked=st.booleans())
    def begin(self, locked: bool) -> None:
        self.admin.execute(
            "TRUNCATE pljobs.job, pljobs.job_event, pljobs.request, pljobs.worker, pljobs.closed_tree, "
            "pljobs.deleted_parent"
        )
        self.locked = locked
        self.ids = [self.new_job(place) for place in range(2)]
        self.jobs = [JobModel(), JobModel()]
        self.workers = [WorkerModel(self.ask(REGISTER, None)) for _ in range(2)]
        self.owner: dict[int, int] = {}  # run -> worker
        self.job_of: dict[int, int] = {}  # run -> job
        self.old: set[int] = set()  # runs older than a lease
        self.late: set[int] = set()  # runs over their timeout, and nobody has noticed

    def ask(self, query: str, *params: object) -> Any:
        found = self.conn.execute(query.encode(), params).fetchone()
        assert found is not None
        return found[0] if len(found) == 1 else found

    def new_job(self, place: int) -> int:
        # A child of a job that there is not: so its tree can be cancelled, and is not closed by that.
        query = "SELECT pljobs.defer_job('t', lock => %s, parent_id => %s)"
        return int(self.ask(query, "lane" if self.locked else None, -1 - place))

    @precondition(lambda self: any(job.status in {"gone", "succeeded"} for job in self.jobs))
    @rule()
    def defer_anew(self) -> None:
        """Put a new job in the place of one with which nothing more can happen."""
        place = next(place for place, job in enumerate(self.jobs) if job.status in {"gone", "succeeded"})
        self.ids[place], self.jobs[place] = self.new_job(place), JobModel()
        self.job_of = {run: at for run, at in self.job_of.items() if at != place}

    @rule(worker=WORKER, count=st.integers(1, 3))
    def fetch(self, worker: int, count: int) -> None:
        who = self.workers[worker]
        query = "SELECT job_id, run_id, attempts FROM pljobs.fetch_jobs_v1(%s, max_jobs => %s)"
        if who.stopped or not who.alive:
            with pytest.raises(psycopg.Error) as caught:
                self.conn.execute(query, [who.id, count])
            assert caught.value.sqlstate == "PJ003"
            return
        rows = self.conn.execute(query, [who.id, count]).fetchall()
        ready = sorted(
            (place for place, job in enumerate(self.jobs) if job.status == "todo"), key=self.ids.__getitem__
        )
        if who.tainted:
            ready = []
        elif self.locked:
            busy = any(job.status == "doing" for job in self.jobs)
            ready = [] if busy else ready[:1]
        assert [job_id for job_id, _, _ in rows] == [self.ids[place] for place in ready[:count]]
        for place, (_, run, attempts) in zip(ready, rows, strict=False):
            self.jobs[place] = self.jobs[place].claim(run)
            assert attempts == self.jobs[place].attempts
            self.owner[run], self.job_of[run] = worker, place

    @precondition(lambda self: self.job_of)
    @rule(data=st.data(), outcome=OUTCOMES, retry=st.booleans(), delete=st.booleans())
    def finish(self, data: st.DataObject, outcome: str, retry: bool, delete: bool) -> None:
        # The newest first: half of the time a run that goes on, else any, also an old one.
        runs = sorted(self.job_of, reverse=True)
        current = [run for run in runs if any(job.run == run for job in self.jobs)]
        run = data.draw(st.sampled_from(current or runs) | st.sampled_from(runs), label="run")
        self.end(run, outcome, retry, delete)

    @precondition(lambda self: any(job.asked for job in self.jobs))
    @rule(outcome=OUTCOMES, retry=st.booleans())
    def finish_what_was_asked_to_abort(self, outcome: str, retry: bool) -> None:
        self.end(next(job.run for job in self.jobs if job.asked and job.run), outcome, retry, delete=False)

    def end(self, run: int, outcome: str, retry: bool, delete: bool) -> None:
        place = self.job_of[run]
        end = {"job_id": self.ids[place], "run_id": run, "outcome": outcome, "delete_job": delete}
        if retry:
            end["retry_at"] = "2020-01-01T00:00:00Z"
        if outcome == "abandoned" and self.jobs[place].run == run:
            self.workers[self.owner[run]].tainted = True
        said = self.ask("SELECT status FROM pljobs.finish_jobs_v1(%s)", Jsonb([end]))
        self.jobs[place], answer = self.jobs[place].finish(run, outcome, retry=retry, delete=delete)
        assert said == answer

    @rule(place=JOB, abort=st.booleans(), delete=st.booleans(), force=st.booleans())
    def cancel(self, place: int, abort: bool, delete: bool, force: bool) -> None:
        query = "SELECT pljobs.cancel_job(%s, abort => %s, delete_job => %s, force => %s)"
        said = self.ask(query, self.ids[place], abort, delete, force)
        self.jobs[place], answer = self.jobs[place].cancel(abort=abort, delete=delete, force=force)
        assert said == answer

    @rule(place=JOB)
    def abort(self, place: int) -> None:
        self.cancel(place, abort=True, delete=False, force=False)

    @rule(place=JOB, abort=st.booleans(), delete=st.booleans(), force=st.booleans())
    def cancel_its_tree(self, place: int, abort: bool, delete: bool, force: bool) -> None:
        query = """
            SELECT outcome FROM pljobs.cancel_tree(%s, abort => %s, delete_job => %s, force => %s)
             WHERE job_id = %s
        """
        params = [-1 - place, abort, delete, force, self.ids[place]]
        said = self.conn.execute(query, params).fetchone()
        job = self.jobs[place]
        if job.status in {"todo", "doing"}:
            self.jobs[place], answer = job.cancel(abort=abort, delete=delete, force=force, source="tree")
            assert said == (answer,)
        else:
            assert said is None

    @rule(place=JOB)
    def takes_too_long(self, place: int) -> None:
        self.admin.execute(
            "UPDATE pljobs.job SET timeout_at = now() - interval '1 s' WHERE id = %s AND status = 'doing'",
            [self.ids[place]],
        )
        if (run := self.jobs[place].run) is not None:
            self.late.add(run)

    @rule(overdue=st.none() | JOB)
    def enforce_limits(self, overdue: int | None) -> None:
        if overdue is not None:
            self.admin.execute(
                "UPDATE pljobs.job SET start_by = now() - interval '1 s' WHERE id = %s AND status = 'todo'",
                [self.ids[overdue]],
            )
        said = dict(self.conn.execute("SELECT job_id, outcome FROM pljobs.enforce_limits_v1()").fetchall())
        expected = {}
        for place, job in enumerate(list(self.jobs)):
            if place == overdue and job.status == "todo":
                self.jobs[place], expected[self.ids[place]] = job.expire(), "expired"
            elif job.run in self.late:
                self.jobs[place], expected[self.ids[place]] = job.time_out(), "abort_requested"
        self.late.clear()
        assert said == expected

    @rule(place=JOB)
    def times_out(self, place: int) -> None:
        self.takes_too_long(place)
        self.enforce_limits(None)

    @rule(place=JOB)
    def delete(self, place: int) -> None:
        said = self.ask("SELECT pljobs.delete_job(%s)", self.ids[place])
        self.jobs[place], answer = self.jobs[place].delete_job()
        assert said == answer

    @rule(place=JOB)
    def retry(self, place: int) -> None:
        said = self.ask("SELECT pljobs.retry_job(%s)", self.ids[place])
        self.jobs[place], answer = self.jobs[place].retry_job()
        assert said == answer

    @rule(worker=WORKER)
    def lease_runs_out(self, worker: int) -> None:
        who = self.workers[worker]
        self.admin.execute(
            "UPDATE pljobs.worker SET expires_at = now() - interval '1 s' WHERE id = %s", [who.id]
        )
        who.alive = False

    @rule(worker=WORKER)
    def register_again(self, worker: int) -> None:
        who = self.workers[worker]
        assert self.ask(REGISTER, who.id) == who.id
        # As if by another process, that is not tainted.
        self.admin.execute("UPDATE pljobs.worker SET tainted_at = NULL WHERE id = %s", [who.id])
        who.alive, who.stopped, who.tainted = True, False, False

    @rule(max_crashes=st.integers(1, 3))
    def rescue(self, max_crashes: int) -> None:
        rows = self.conn.execute(
            "SELECT * FROM pljobs.rescue_jobs_v1(max_crashes => %s)", [max_crashes]
        ).fetchall()
        expected = {}
        for place, job in enumerate(list(self.jobs)):
            if job.run is not None and not self.workers[self.owner[job.run]].alive:
                self.jobs[place], expected[self.ids[place]] = job.rescue(max_crashes=max_crashes)
        assert dict(rows) == expected
        for worker in self.workers:
            worker.stopped = worker.stopped or not worker.alive

    @rule(worker=WORKER)
    def worker_is_lost(self, worker: int) -> None:
        self.lease_runs_out(worker)
        self.rescue(3)
        self.register_again(worker)

    @rule()
    def time_passes(self) -> None:
        self.admin.execute("UPDATE pljobs.job SET started_at = now() - interval '1 h' WHERE status = 'doing'")
        self.old |= {job.run for job in self.jobs if job.run is not None}

    @rule(data=st.data(), worker=WORKER)
    def heartbeat(self, data: st.DataObject, worker: int) -> None:
        listed = data.draw(st.lists(st.sampled_from(sorted(self.job_of) or [0]), unique=True), label="runs")
        who = self.workers[worker]
        query = "SELECT run_id, verdict FROM pljobs.heartbeat_v1(%s, %s)"
        if who.stopped:
            with pytest.raises(psycopg.Error) as caught:
                self.conn.execute(query, [who.id, listed])
            assert caught.value.sqlstate == "PJ003"
            return
        said = dict(self.conn.execute(query, [who.id, listed]).fetchall())
        who.alive = True
        expected = dict.fromkeys(listed, "lost")
        for place, job in enumerate(list(self.jobs)):
            if job.run is None or self.owner[job.run] != worker:
                continue
            if job.run not in listed and job.run in self.old:
                self.jobs[place] = job.give_back()
                continue
            if job.run in self.late:
                self.late.discard(job.run)
                self.jobs[place] = job.time_out()
            asked = self.jobs[place].asked
            if job.run in listed or asked:
                expected[job.run] = "abort" if asked else "ok"
        assert said == expected

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        if not hasattr(self, "jobs"):
            return
        rows = self.conn.execute(
            "SELECT id, status, run_id, abort_requested, attempts, crashes FROM pljobs.jobs"
        )
        found = {job_id: tuple(rest) for job_id, *rest in rows}
        for job_id, job in zip(self.ids, self.jobs, strict=True):
            expected = (job.status, job.run, job.asked != "", job.attempts, job.crashes)
            assert found.get(job_id, ("gone", None, False, 0, 0)) == expected

    @invariant()
    def a_request_is_open_only_for_a_run_that_goes_on(self) -> None:
        if hasattr(self, "jobs"):
            found = self.conn.execute("SELECT run_id, source FROM pljobs.requests WHERE resolved_at IS NULL")
            assert set(found) == {(job.run, job.asked) for job in self.jobs if job.asked}

    @invariant()
    def nobody_sleeps_in_a_free_lane(self) -> None:
        if hasattr(self, "jobs"):
            assert self.ask("SELECT pljobs.wake_lanes_v1()") == 0


REGISTER = "SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '30 s', worker_id => %s)"


def test_the_sql_is_the_model(server: Server, db_url: str, conn: psycopg.Connection) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Machine.admin = conn
    with psycopg.connect(db_url, autocommit=True) as login:
        Machine.conn = login
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=250,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
