"""Two transitions of one job at once: how a race of them is run, and what it may come to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sessions import Answer, Session

# The job is "j", of worker W and its run R; in the same lane, deferred inside of it, is "k"; V is another
# worker. What defers a new job calls it "new"; "follow-up" is what "j" names for when it is cancelled.
CALLS: Mapping[str, str] = MappingProxyType(
    {
        "fetch": "SELECT array_agg(task) FROM pljobs.fetch_jobs_v1(%(V)s, 5)",
        "finish": "SELECT status FROM pljobs.finish_jobs_v1(public.ended(%(J)s, %(R)s, 'succeeded'))",
        "finish, no wait": """
            SELECT status
              FROM pljobs.finish_jobs_v1(public.ended(%(J)s, %(R)s, 'succeeded'), wait => false)""",
        "retry": "SELECT status FROM pljobs.finish_jobs_v1(public.ended(%(J)s, %(R)s, 'failed', '0 s'))",
        "stopped": "SELECT status FROM pljobs.finish_jobs_v1(public.ended(%(J)s, %(R)s, 'aborted'))",
        "abandoned": "SELECT status FROM pljobs.finish_jobs_v1(public.ended(%(J)s, %(R)s, 'abandoned'))",
        "finish in body": "SELECT pljobs.finish_job_v1(%(J)s, %(R)s)",
        "cancel": "SELECT c.outcome FROM pljobs.cancel_job_v1(%(J)s) AS c",
        "abort": "SELECT c.outcome FROM pljobs.cancel_job_v1(%(J)s, abort => true) AS c",
        "force": "SELECT c.outcome FROM pljobs.cancel_job_v1(%(J)s, force => true) AS c",
        "cancel tree": """
            SELECT array_agg(task_name || ' ' || outcome ORDER BY task_name)
              FROM pljobs.cancel_tree_v1(%(J)s, abort => true)""",
        "delete": "SELECT pljobs.delete_job(%(J)s)",
        "retry job": "SELECT pljobs.retry_job(%(J)s)",
        "rescind": "SELECT outcome FROM pljobs.rescind_request_v1(%(J)s)",
        "rescue": "SELECT array_agg(outcome) FROM pljobs.rescue_jobs_v1()",
        "limits": "SELECT array_agg(outcome) FROM pljobs.enforce_limits_v1()",
        "prune": "SELECT pljobs.prune_jobs_v1('30 min')",
        "archive": "SELECT pruned FROM pljobs.prune_jobs_v2('30 min', archive => true)",
        "heartbeat": "SELECT array_agg(verdict) FROM pljobs.heartbeat_v1(%(W)s, ARRAY[%(R)s])",
        "give back": "SELECT array_agg(verdict) FROM pljobs.heartbeat_v1(%(W)s)",
        "defer by key": """
            SELECT is_new FROM pljobs.defer_jobs_v2('[{"task": "new", "idempotency_key": "key"}]')""",
        "defer by lock": """
            SELECT cardinality(pljobs.defer_jobs_v1('[{"task": "new", "queueing_lock": "only"}]'))""",
    }
)
# Called in transactions of a person's or a body's own, which may stay open: no worker may wait for these.
PEOPLE = ("finish in body", "cancel", "abort", "force", "cancel tree", "delete", "retry job", "rescind")
# What a worker calls, and passes over rows that somebody holds.
SKIPPING = ("fetch", "finish, no wait", "rescue", "limits", "prune", "archive", "heartbeat", "give back")

# What these two may have done besides, in the state "asked": a heartbeat that leaves a run where it is, for a
# person holds the job, tells its worker of the request at least; the next one gives the run back.
EXCEPT = {(first, "give back"): (" delivered", "told before it is given back") for first in PEOPLE}
# A waiting job has the queueing lock; the worker is not registered; the run is not the job's any more.
RAISED = {"PJ001", "PJ003", "PJ011"}
STATE = re.compile("[0-9A-Z]{5}")

STATES = ("doing", "asked", "lost", "late", "todo", "failed", "cancelled")

ARRANGE = """
-- Who makes the month's partition keeps another from archiving: races/archive.spec.
SELECT pljobs._make_archive(date_trunc('month', now() - interval '1 h', 'UTC'));

CREATE FUNCTION public.ended(job_id bigint, run_id bigint, outcome text, retry_in text DEFAULT NULL)
RETURNS jsonb LANGUAGE sql RETURN jsonb_build_array(jsonb_build_object(
    'job_id', job_id, 'run_id', run_id, 'outcome', outcome, 'retry_in', retry_in));

CREATE FUNCTION public.clear() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM pljobs.job; DELETE FROM pljobs.job_event;
    DELETE FROM pljobs.request; DELETE FROM pljobs.worker;
    DELETE FROM pljobs.closed_tree; DELETE FROM pljobs.deleted_parent; DELETE FROM pljobs.idempotency;
    DELETE FROM pljobs.job_archive;
END $$;

CREATE FUNCTION public.arrange(state text, lane text, OUT j bigint, OUT r bigint, OUT w bigint, OUT v bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.clear();
    w := pljobs.register_worker_v1('w', 'h', 1, lease => '30 min');
    v := pljobs.register_worker_v1('v', 'h', 1, lease => '30 min');
    j := pljobs.defer_job('j', lock => lane, queueing_lock => 'only', on_cancelled => 'follow-up',
                          timeout => CASE WHEN state = 'late' THEN interval '1 s' END);
    SELECT f.run_id INTO r FROM pljobs.fetch_jobs_v1(w) AS f;
    PERFORM pljobs.defer_job('k', lock => lane, parent_id => j);
    IF state = 'todo' THEN
        PERFORM pljobs.finish_jobs_v1(public.ended(j, r, 'failed', '0 s'));
    ELSIF state = 'failed' THEN
        PERFORM pljobs.finish_jobs_v1(public.ended(j, r, 'failed'));
    ELSIF lane IS NOT NULL THEN
        -- It meets the child, and parks it.
        PERFORM pljobs.fetch_jobs_v1(v);
    END IF;
    IF state = 'asked' THEN
        PERFORM pljobs.cancel_job(j, abort => true);
    ELSIF state = 'cancelled' THEN
        PERFORM pljobs.finish_jobs_v1(public.ended(j, r, 'interrupted'));
        PERFORM pljobs.cancel_job(j);
    ELSIF state = 'lost' THEN
        UPDATE pljobs.worker SET expires_at = now() - interval '1 h' WHERE id = w;
    END IF;
    UPDATE pljobs.job SET started_at = now() - interval '1 h', finished_at = finished_at - interval '1 h',
                          timeout_at = timeout_at - interval '1 h' WHERE id = j;
    TRUNCATE public.jobs, public.events, public.requests, public.workers;
    INSERT INTO public.jobs SELECT * FROM pljobs.job;
    INSERT INTO public.events SELECT * FROM pljobs.job_event;
    INSERT INTO public.requests SELECT * FROM pljobs.request;
    INSERT INTO public.workers SELECT * FROM pljobs.worker;
END $$;
CREATE TABLE public.jobs (LIKE pljobs.job); CREATE TABLE public.events (LIKE pljobs.job_event);
CREATE TABLE public.requests (LIKE pljobs.request); CREATE TABLE public.workers (LIKE pljobs.worker);

CREATE FUNCTION public.rearrange() RETURNS void LANGUAGE plpgsql AS $$
-- As it was arranged: some thousand times, so by the rows and not by the functions.
BEGIN
    PERFORM public.clear();
    INSERT INTO pljobs.worker OVERRIDING SYSTEM VALUE SELECT * FROM public.workers;
    INSERT INTO pljobs.job OVERRIDING SYSTEM VALUE SELECT * FROM public.jobs;
    INSERT INTO pljobs.job_event SELECT * FROM public.events;
    INSERT INTO pljobs.request OVERRIDING SYSTEM VALUE SELECT * FROM public.requests;
END $$;

CREATE FUNCTION public.picture(j bigint, r bigint, w bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    -- What a race between a person and a fetch has left asleep in its lane, any worker wakes.
    PERFORM pljobs.wake_lanes_v1();
    RETURN jsonb_build_object(
    'jobs', (SELECT jsonb_object_agg(job.task, to_jsonb(ARRAY[
                 job.status, job.waiting_for, job.attempts::text, job.crashes::text, job.queueing_lock,
                 CASE WHEN job.run_id = r THEN 'run' WHEN job.run_id > r THEN 'new run' END,
                 CASE WHEN job.last_run_id = r THEN 'last' END,
                 CASE WHEN job.request_id > 0 THEN 'asked' END]) ORDER BY job.id)
               FROM pljobs.job),
    'archived', (SELECT jsonb_agg(archived.task) FROM pljobs.job_archive AS archived),
    'twice', (SELECT count(*) - count(DISTINCT job.task) FROM pljobs.job),
    'requests', (SELECT jsonb_agg(q.row ORDER BY q.row) FROM (
                 SELECT concat_ws(' ', CASE WHEN job_id = j THEN 'j' ELSE 'k' END, kind, source, resolution,
                                  CASE WHEN delivered_at IS NOT NULL THEN 'delivered' END) AS row
                   FROM pljobs.request) AS q),
    'events', (SELECT jsonb_agg(kind ORDER BY kind) FROM pljobs.job_event),
    'worker', (SELECT jsonb_build_array(stopped_at IS NULL, tainted_at IS NULL, expires_at > now())
                 FROM pljobs.worker WHERE id = w),
    'closed', (SELECT count(*) FROM pljobs.closed_tree),
    'keys', (SELECT jsonb_agg(EXISTS (SELECT FROM pljobs.job WHERE job.id = job_id))
               FROM pljobs.idempotency));
END $$;
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What each was answered, and what is there then; `again`: once what passed it over is called again."""

    answers: tuple[str | None, ...]
    picture: str
    waited: bool = False
    again: str = ""


# A fetch that was slow, on a busy machine, lets the next ones begin further on for a moment.
LOOK_AT_ALL = "SET pljobs.fetch_hint = ''"


@dataclass(slots=True)
class Races:
    """Runs pairs, each on a job of its own; what comes of one after the other is run once, and remembered."""

    admin: Session
    first: Session
    second: Session
    observer: Session
    _ids: Mapping[str, object] = field(default_factory=dict)
    _known: dict[tuple[str, ...], Outcome] = field(default_factory=dict)

    def install(self) -> None:
        """Make what arranges a race, and what looks at its end."""
        self._done(ARRANGE)

    def arrange(self, state: str, lane: str | None) -> None:
        """Let the next races begin in this state."""
        found = self._done(
            "SELECT * FROM public.arrange(%(state)s, %(lane)s)", {"state": state, "lane": lane}
        )
        self._ids = dict(zip("JRWV", (int(value or 0) for value in found.rows[0]), strict=True))
        self._known.clear()

    def serial(self, *names: str) -> Outcome:
        """Run one after the other."""
        if names not in self._known:
            self._done("SELECT public.rearrange()")
            answers = tuple(self._ask_second(CALLS[name]).value for name in names)
            self._known[names] = Outcome(answers, self._picture())
        return self._known[names]

    def race(self, first: str, second: str, *, commit: bool) -> Outcome:
        """Do the first, and leave its transaction open; begin the second; end the first."""
        self._done("SELECT public.rearrange()")
        self.first.ask(LOOK_AT_ALL)
        said = self.first.ask(f"BEGIN; {CALLS[first]}", self._ids).value
        self.second.ask(LOOK_AT_ALL)
        self.second.send(CALLS[second], self._ids)
        waited = self.second.waits_for(self.first, self.observer)
        self.first.ask("COMMIT" if commit else "ROLLBACK")
        answers = (said, self.second.answer().value)
        picture, again = self._picture(), ""
        if second in SKIPPING and not waited:
            self._ask_second(CALLS[second])
            again = self._picture()
        return Outcome(answers, picture, waited, again)

    def _ask_second(self, call: str) -> Answer:
        self.second.ask(LOOK_AT_ALL)
        return self.second.ask(call, self._ids)

    def matters(self, first: str, second: str) -> bool:
        """Whether each may change something, or the second pass over what the first holds."""
        nothing, alone = self.serial().picture, self.serial(second).picture != self.serial().picture
        if self.serial(first).picture == nothing:
            return alone and first in PEOPLE and second in SKIPPING
        return alone or self.serial(first, second).picture != self.serial(first).picture

    def _picture(self) -> str:
        value = self._done("SELECT public.picture(%(J)s, %(R)s, %(W)s)", self._ids).value
        return json.dumps(json.loads(value or ""), sort_keys=True)

    def _done(self, query: str, params: Mapping[str, object] | None = None) -> Answer:
        found = self.admin.ask(query, params)
        assert not found.error, found
        return found


def differs(races: Races, first: str, second: str, *, commit: bool) -> str:
    """Run a race; say how its outcome is none of one after the other, or '' if it is."""
    found = races.race(first, second, commit=commit)
    later = races.serial(first, second) if commit else races.serial(second)
    said = found.answers if commit else found.answers[1:]
    right = {(later.answers, later.picture)}
    if commit:
        earlier = races.serial(second, first)
        right.add((earlier.answers[::-1], earlier.picture))
    wrong = ""
    if unknown := {answer for answer in found.answers if answer and STATE.fullmatch(answer)} - RAISED:
        wrong = f"raised {unknown}"
    elif found.waited and first in PEOPLE and second in SKIPPING:
        wrong = "a worker waited for a person's transaction"
    elif (said, found.picture) not in right and not (
        # It passed over what the first held: as if it had not been called, and the next call makes up for it.
        found.again and forgets(found.again, first, second) == forgets(later.picture, first, second)
    ):
        wrong = "is as after neither order"
    return wrong and (
        f"{first} | {second}, {'commit' if commit else 'rollback'}: {wrong}\n  found {found}\n  right {right}"
    )


def forgets(picture: str, first: str, second: str) -> str:
    """Leave out what EXCEPT allows this pair to have done besides."""
    return picture.replace(EXCEPT.get((first, second), ("\0", ""))[0], "")
