"""Calls the SQL functions at random in several sessions, and the model beside them: all must be the same."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from session_calls import JOB, REGISTER, WORKER, Calls
from session_model import Row, Transaction

LOOK = """
    PREPARE look (bigint[]) AS
    SELECT j.id, j.status, j.run_id, j.attempts, j.crashes, j.waiting_for, r.source
      FROM pljobs.job AS j LEFT JOIN pljobs.request AS r ON r.run_id = j.run_id AND r.resolved_at IS NULL
     WHERE j.id = ANY ($1)
"""


class Machine(Calls):
    """What workers call besides, and time; what is committed must always be what the model says."""

    def free_runs(self) -> list[int]:
        """The jobs that run, and that nobody holds."""
        return [place for place in self.in_order(self.rows, "doing") if self.quiet(place)]

    def lane_is_taken(self) -> bool:
        """Whether what ends a run of the lane would have to wait, or takes what somebody is about to get."""
        waiting = any(tx.blocker is not None for tx in self.all)
        return self.locked and (waiting or self.holder("lane") is not None)

    def wake_alone(self) -> int:
        alone = Transaction(self.admin)
        self.all.append(alone)
        woken = self.wake(alone)
        self.release(alone, commit=True)
        self.all.remove(alone)
        return woken

    @rule(max_crashes=st.integers(1, 3))
    def rescue(self, max_crashes: int) -> None:
        if self.lane_is_taken():
            return
        expected = {}
        for place in self.free_runs():
            job = self.rows[place].job
            if job.run is not None and not self.workers[self.owner[job.run]].alive:
                job, expected[str(self.ids[place])] = job.rescue(max_crashes=max_crashes)
                self.rows[place] = Row(job)
        query = "SELECT job_id, outcome FROM pljobs.rescue_jobs_v1(max_crashes => %(max)s)"
        assert self.admin.ask(query, {"max": max_crashes}).pairs == expected
        if expected:
            self.wake_alone()
        for worker in self.workers:
            worker.stopped = worker.stopped or not worker.alive

    @rule(worker=WORKER)
    def lease_runs_out(self, worker: int) -> None:
        who = self.workers[worker]
        self.admin.ask(
            "UPDATE pljobs.worker SET expires_at = now() - interval '1 s' WHERE id = %(id)s", {"id": who.id}
        )
        who.alive = False

    @rule(worker=WORKER)
    def register_again(self, worker: int) -> None:
        who = self.workers[worker]
        assert self.admin.ask(REGISTER, {"id": who.id}).value == str(who.id)
        # As if by another process, that is not tainted.
        self.admin.ask("UPDATE pljobs.worker SET tainted_at = NULL WHERE id = %(id)s", {"id": who.id})
        who.alive, who.stopped, who.tainted = True, False, False

    @rule(worker=WORKER)
    def worker_is_lost(self, worker: int) -> None:
        self.lease_runs_out(worker)
        self.rescue(3)
        self.register_again(worker)

    @rule()
    def time_passes(self) -> None:
        places = self.free_runs()
        self.admin.ask(
            "UPDATE pljobs.job SET started_at = now() - interval '1 h' WHERE id = ANY (%(ids)s)",
            {"ids": [self.ids[place] for place in places]},
        )
        self.old |= {run for place in places if (run := self.rows[place].job.run) is not None}

    @rule(place=JOB, enforce=st.booleans())
    def takes_too_long(self, place: int, enforce: bool) -> None:
        if place in self.free_runs() and (run := self.rows[place].job.run) is not None:
            self.admin.ask(
                "UPDATE pljobs.job SET timeout_at = now() - interval '1 s' WHERE id = %(id)s",
                {"id": self.ids[place]},
            )
            self.late.add(run)
        if enforce:
            self.enforce_limits(None)

    @rule(overdue=st.none() | JOB)
    def enforce_limits(self, overdue: int | None) -> None:
        expected = {}
        waiting = any(tx.blocker is not None for tx in self.all)
        if (
            overdue is not None
            and self.quiet(overdue)
            and self.rows[overdue].job.status == "todo"
            and not waiting
        ):
            self.admin.ask(
                "UPDATE pljobs.job SET start_by = now() - interval '1 s' WHERE id = %(id)s",
                {"id": self.ids[overdue]},
            )
            self.rows[overdue] = Row(self.rows[overdue].job.expire())
            expected[str(self.ids[overdue])] = "expired"
        for place in self.free_runs():
            row = self.rows[place]
            if row.job.run in self.late:
                self.rows[place] = row._replace(job=row.job.time_out())
                self.late.discard(row.job.run)
                expected[str(self.ids[place])] = "abort_requested"
        assert self.admin.ask("SELECT job_id, outcome FROM pljobs.enforce_limits_v1()").pairs == expected
        if "expired" in expected.values():
            self.wake_alone()

    @rule(data=st.data(), worker=WORKER)
    def heartbeat(self, data: st.DataObject, worker: int) -> None:
        listed = data.draw(st.lists(st.sampled_from(sorted(self.job_of) or [0]), unique=True), label="runs")
        who = self.workers[worker]
        if self.lane_is_taken():
            return
        query = "SELECT run_id, verdict FROM pljobs.heartbeat_v1(%(id)s, %(runs)s::bigint[])"
        answer = self.admin.ask(query, {"id": who.id, "runs": listed})
        if who.stopped:
            assert answer.error == "PJ003"
            return
        who.alive = True
        said = {int(run): verdict for run, verdict in answer.pairs.items()}
        expected = dict.fromkeys(listed, "lost")
        given_back = False
        for place in self.in_order(self.rows, "doing"):
            job = self.rows[place].job
            if (run := job.run) is None or self.owner[run] != worker:
                continue
            if self.quiet(place):
                if run not in listed and run in self.old:
                    self.rows[place], given_back = Row(job.give_back()), True
                    continue
                if run in self.late:
                    self.late.discard(run)
                    job = job.time_out()
                    self.rows[place] = Row(job)
            elif job.asked:
                # Somebody holds it: it may or may not have been told yet.
                expected[run] = said.get(run, "ok")
                assert expected[run] in {"abort", "ok"}
                if run not in said:
                    del expected[run]
                continue
            if run in listed or job.asked:
                expected[run] = "abort" if job.asked else "ok"
        assert said == expected
        if given_back:
            self.wake_alone()

    @precondition(lambda self: self.locked)
    @rule()
    def sweep(self) -> None:
        if self.lane_is_taken():
            return
        head = next(iter(self.in_order(self.rows)), None)
        asleep = head is not None and self.rows[head].parked and not self.in_order(self.rows, "doing")
        expected = self.wake_alone() if asleep else 0
        assert self.admin.ask("SELECT pljobs.wake_lanes_v1()").value == str(int(expected))

    @invariant()
    def what_is_committed_is_as_the_model_says(self) -> None:
        if not hasattr(self, "workers"):
            return
        found = {
            int(row[0] or 0): row[1:]
            for row in self.admin.ask("EXECUTE look (%(ids)s::bigint[])", {"ids": self.ids}).rows
        }
        for job_id, (job, parked) in zip(self.ids, self.rows, strict=True):
            run, waits = None if job.run is None else str(job.run), "lock" if parked else None
            expected = (job.status, run, str(job.attempts), str(job.crashes), waits, job.asked or None)
            assert found.get(job_id, ("gone", None, "0", "0", None, None)) == expected
        if self.locked:
            assert [row[0] for row in found.values()].count("doing") <= 1  # I11
