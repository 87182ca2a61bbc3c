"""What is called in transactions that may stay open: fetch, finish, and what people call."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from psycopg.types.json import Jsonb

from session_model import ALL, WHO, Row, Sessions, Transaction
from sessions import Answer

OUTCOMES = st.sampled_from(["succeeded", "failed", "aborted", "interrupted", "killed", "abandoned"])
WORKER = st.sampled_from([0, 1])
JOB = st.sampled_from([0, 1])
REGISTER = "SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '30 s', worker_id => %(id)s)"
FETCH = """
    SELECT set_config('pljobs.fetch_hint', '', false);
    SELECT job_id, run_id, attempts FROM pljobs.fetch_jobs_v1(%(worker)s, max_jobs => %(count)s)
"""
# Ids begin anew: the trees of the jobs -1 and -2 have keys that a job of an id about 1,000 would share.
CLEAR = """
    DELETE FROM pljobs.job; DELETE FROM pljobs.job_event; DELETE FROM pljobs.request;
    DELETE FROM pljobs.worker; DELETE FROM pljobs.closed_tree; DELETE FROM pljobs.deleted_parent;
    SELECT setval(pg_get_serial_sequence('pljobs.job', 'id'), 1, false)
"""


@dataclass(slots=True)
class WorkerModel:
    id: int
    alive: bool = True
    stopped: bool = False
    tainted: bool = False


class Calls(Sessions):
    """Each call beside the model of it: the answers must be the same."""

    @initialize(locked=st.booleans(), count=st.integers(2, 4))
    def begin_all(self, locked: bool, count: int) -> None:
        assert not self.admin.ask(CLEAR).error
        self.begin_model(count, locked=locked)
        self.ids = [self.new_job(place) for place in range(2)]
        self.workers = [WorkerModel(int(self.admin.ask(REGISTER, {"id": None}).value or 0)) for _ in range(2)]
        self.owner: dict[int, int] = {}  # run -> worker
        self.job_of: dict[int, int] = {}  # run -> job
        self.old: set[int] = set()  # runs older than a lease
        self.late: set[int] = set()  # runs over their timeout, and nobody has noticed

    def new_job(self, place: int) -> int:
        # A child of a job that there is not: so its tree can be cancelled, and is not closed by that.
        query = "SELECT pljobs.defer_job('t', lock => %(lock)s, parent_id => %(parent)s)"
        params = {"lock": "lane" if self.locked else None, "parent": -1 - place}
        return int(self.admin.ask(query, params).value or 0)

    @precondition(lambda self: any(row.job.status in {"gone", "succeeded"} for row in self.rows))
    @rule()
    def defer_anew(self) -> None:
        """Put a new job in the place of one with which nothing more can happen."""
        for place, row in enumerate(self.rows):
            # A call that waits would be about the job that was there.
            waited_for = any(f"key {place}" in tx.needs for tx in self.all if tx.blocker is not None)
            if row.job.status in {"gone", "succeeded"} and self.quiet(place) and not waited_for:
                self.ids[place], self.rows[place] = self.new_job(place), Row()
                self.job_of = {run: at for run, at in self.job_of.items() if at != place}
                return

    # Fetch and finish

    @rule(who=WHO, worker=WORKER, count=st.integers(1, 3))
    def fetch(self, who: int, worker: int, count: int) -> None:
        tx, by = self.at(who), self.workers[worker]

        def then(answer: Answer) -> None:
            if by.stopped or not by.alive:
                assert answer.error == "PJ003"
                return
            places = [] if by.tainted else self.starts(tx, count)
            found = [tuple(int(value or 0) for value in row) for row in answer.rows]
            assert [job_id for job_id, _, _ in found] == [self.ids[place] for place in places]
            for place, (_, run, attempts) in zip(places, found, strict=True):
                job = tx.own[place].job.claim(run)
                assert attempts == job.attempts
                self.write(tx, place, Row(job))
                self.owner[run], self.job_of[run] = worker, place

        self.call(tx, FETCH, {"worker": by.id, "count": count}, then, may_take=ALL)

    def starts(self, tx: Transaction, count: int) -> list[int]:
        """Do what a fetch does with rows, lane and keys; return what it starts."""
        want, take = count, list[int]()
        for turn in range(1, 21):
            view = self.view(tx)
            free = [p for p in self.in_order(view) if not view[p].parked and self.may_take(tx, f"row {p}")]
            if not (chosen := free[:want]):
                return []
            for place in chosen:
                self.write(tx, place, view[place])
            take = self.lane_lets(tx, chosen) if self.locked else chosen
            take = [place for place in take if self.may_take(tx, f"key {place}")]
            tx.holds.update(f"key {place}" for place in take)
            if take or (len(chosen) < want and turn > 1):
                break
            want *= 2
        return take[:count]

    def lane_lets(self, tx: Transaction, chosen: list[int]) -> list[int]:
        if not self.may_take(tx, "lane"):
            return []
        tx.holds.add("lane")
        view = self.view(tx)
        busy, head = any(row.job.status == "doing" for row in view), self.in_order(view)[0]
        for place in chosen:
            if busy or place != head:
                self.write(tx, place, view[place]._replace(parked=True))
        if not busy and head not in chosen and view[head].parked and self.may_take(tx, f"row {head}"):
            self.write(tx, head, view[head]._replace(parked=False))
        return [head] if not busy and head in chosen else []

    @precondition(lambda self: self.job_of)
    @rule(
        data=st.data(),
        who=WHO,
        outcome=OUTCOMES,
        retry=st.booleans(),
        delete=st.booleans(),
        wait=st.booleans(),
    )
    def finish(
        self, data: st.DataObject, who: int, outcome: str, retry: bool, delete: bool, wait: bool
    ) -> None:
        # The newest first: half of the time a run that goes on, else any, also an old one.
        runs = sorted(self.job_of, reverse=True)
        current = [run for run in runs if any(row.job.run == run for row in self.rows)]
        run = data.draw(st.sampled_from(current or runs) | st.sampled_from(runs), label="run")
        self.finish_run(self.at(who), run, outcome, retry=retry, delete=delete, wait=wait)

    @precondition(lambda self: any(row.job.asked for row in self.rows))
    @rule(who=WHO, outcome=OUTCOMES, retry=st.booleans())
    def finish_what_was_asked_to_abort(self, who: int, outcome: str, retry: bool) -> None:
        run = next(row.job.run for row in self.rows if row.job.asked and row.job.run)
        self.finish_run(self.at(who), run, outcome, retry=retry, delete=False, wait=True)

    def finish_run(
        self, tx: Transaction, run: int, outcome: str, *, retry: bool, delete: bool, wait: bool
    ) -> None:
        place = self.job_of[run]
        if tx.is_open and outcome == "abandoned":
            return  # It would hold its worker, too.
        end: dict[str, object] = {"job_id": self.ids[place], "run_id": run, "outcome": outcome}
        end |= {"delete_job": delete} | ({"retry_at": "2020-01-01T00:00:00Z"} if retry else {})
        query = "SELECT status FROM pljobs.finish_jobs_v1(%(runs)s, wait => %(wait)s)"
        passed = not wait and not self.may_take(tx, f"row {place}")

        def then(answer: Answer) -> None:
            if passed:
                assert answer.value == "locked"
                return
            row = self.view(tx)[place]
            job, expected = row.job.finish(run, outcome, retry=retry, delete=delete)
            if outcome == "abandoned" and row.job.run == run:
                self.workers[self.owner[run]].tainted = True
            assert answer.value == expected
            if row.job.status != "gone":
                self.write(tx, place, Row(job, row.parked and job == row.job))
                self.wake(tx)

        needs = [] if passed else self.row(tx, place)
        needs += ["lane"] * (self.locked and bool(needs))
        self.call(tx, query, {"runs": Jsonb([end]), "wait": wait}, then, needs=needs)

    @precondition(lambda self: self.job_of)
    @rule(data=st.data(), who=WHO)
    def finish_in_body(self, data: st.DataObject, who: int) -> None:
        run = data.draw(st.sampled_from(sorted(self.job_of, reverse=True)), label="run")
        tx, place = self.at(who), self.job_of[run]

        def then(answer: Answer) -> None:
            row = self.view(tx)[place]
            job, expected = row.job.finish_in_body(run)
            assert answer.value == ("PJ011" if expected == "lost" else expected)
            if expected != "lost":
                self.write(tx, place, Row(job))
                self.wake(tx)

        query = "SELECT pljobs.finish_job_v1(%(job)s, %(run)s)"
        self.call(tx, query, {"job": self.ids[place], "run": run}, then, needs=self.row(tx, place))

    # People

    @rule(who=WHO, place=JOB, abort=st.booleans(), delete=st.booleans(), force=st.booleans())
    def cancel(self, who: int, place: int, abort: bool, delete: bool, force: bool) -> None:
        tx = self.at(who)

        def then(answer: Answer) -> None:
            row = self.view(tx)[place]
            job, expected = row.job.cancel(abort=abort, delete=delete, force=force)
            assert answer.value == expected
            ends = row.job.status == "todo" or (row.job.status == "doing" and force)
            self.write(tx, place, Row(job) if ends else row._replace(job=job))
            if ends:
                self.wake(tx)

        query = "SELECT pljobs.cancel_job(%(job)s, abort => %(a)s, delete_job => %(d)s, force => %(f)s)"
        params: dict[str, object] = {"job": self.ids[place], "a": abort, "d": delete, "f": force}
        self.call(tx, query, params, then, needs=self.row(tx, place))

    @rule(who=WHO, place=JOB)
    def abort(self, who: int, place: int) -> None:
        self.cancel(who, place, abort=True, delete=False, force=False)

    @rule(who=WHO, place=JOB, abort=st.booleans(), delete=st.booleans(), force=st.booleans())
    def cancel_its_tree(self, who: int, place: int, abort: bool, delete: bool, force: bool) -> None:
        tx = self.at(who)

        def then(answer: Answer) -> None:
            row = self.view(tx)[place]
            if row.job.status not in {"todo", "doing"}:
                assert answer.value is None
                return
            job, expected = row.job.cancel(abort=abort, delete=delete, force=force, source="tree")
            assert answer.value == expected
            self.write(tx, place, Row(job, row.parked and job == row.job))
            if row.job.status == "todo" or force:
                self.wake(tx)

        query = """
            SELECT outcome
              FROM pljobs.cancel_tree(%(root)s, abort => %(a)s, delete_job => %(d)s, force => %(f)s)
             WHERE job_id = %(job)s
        """
        params: dict[str, object] = {"job": self.ids[place], "a": abort, "d": delete, "f": force}
        needs = [f"key {place}", *self.row(tx, place)]
        self.call(tx, query, params | {"root": -1 - place}, then, needs=needs)

    @rule(who=WHO, place=JOB, retry=st.booleans())
    def delete_or_retry(self, who: int, place: int, retry: bool) -> None:
        tx = self.at(who)

        def then(answer: Answer) -> None:
            row = self.view(tx)[place]
            job, expected = row.job.retry_job() if retry else row.job.delete_job()
            assert answer.value == expected
            self.write(tx, place, Row(job, row.parked and job == row.job))

        query = f"SELECT pljobs.{'retry' if retry else 'delete'}_job(%(job)s)"
        self.call(tx, query, {"job": self.ids[place]}, then, needs=self.row(tx, place))
