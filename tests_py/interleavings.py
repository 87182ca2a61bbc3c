"""All interleavings of two workers and a person over one job, by the model of what the SQL does to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from explore import PERSON, explore
from model import FINAL, JobModel

MAX_ATTEMPTS = 2  # what the task's retry strategy says
MAX_CRASHES = 2


class Worker(NamedTuple):
    """A worker with a run: its body goes on, or has ended so.

    `within`: the body's own transaction, that ends its job too, is "open" or "committed".
    """

    run: int
    may_retry: bool = False
    outcome: str = ""
    retry: bool = False
    within: str = ""


class World(NamedTuple):
    """The job, two workers, what a person knows, and what must be counted."""

    job: JobModel = JobModel()
    a: Worker | None = None
    b: Worker | None = None
    claims: int = 0
    retries: int = 0
    ends: int = 0
    effects: int = 0  # of bodies that commit them with the end of their job
    starts: int = 0  # of bodies, but for those whose worker was shut down
    lost: int = 0  # the run whose fetch was never answered, until that is thrown away
    # Somebody was told that the job is asked to abort, or that it is cancelled.
    told: str = ""
    bad: str = ""
    last: bool = False  # no claim is left

    @property
    def ended(self) -> bool:
        return self.job.status in {*FINAL, "gone"} or (self.job.status == "todo" and self.last)

    @property
    def held(self) -> bool:
        """Whether a body's open transaction holds the job: whoever wants it waits, or passes it over."""
        return any(worker is not None and worker.within == "open" for worker in (self.a, self.b))


@dataclass(frozen=True, slots=True)
class Search:
    """What may happen.

    `leases`: a job is taken from a worker only when its lease is over, as it is meant to be; without, at any
    moment, as when a clock jumps. A worker stops its bodies before the end of its lease.
    """

    variant: str = ""
    claims: int = 3
    people: bool = True
    leases: bool = False

    def run(self) -> tuple[int, list[str]]:
        """Return the number of states, and the way to one that breaks a rule."""
        return explore(
            World(), lambda world: ((step, judged(world, after, self)) for step, after in self.steps(world))
        )

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Go through all that may happen next."""
        for name in ("a", "b"):
            worker: Worker | None = getattr(world, name)
            put = partial(holding, name=name)
            if worker is None:
                yield from self._claims(world, name)
                continue
            yield f"{name} is killed", put(world, worker=None)
            if worker.within == "open":
                yield from self._within(world, name, worker)
            elif not worker.outcome:
                yield from self._body(world, name, worker)
            elif not world.held:
                yield from self._finish(world, name, worker)
        if world.held:
            return
        yield from self._others(world)
        if self.people:
            yield from ((PERSON + step, after) for step, after in self._person(world))

    def _claims(self, world: World, name: str) -> Iterator[tuple[str, World]]:
        job, run = world.job, world.claims + 1
        blind = self.variant == "blind claim" and job.status == "cancelled"
        if (job.status == "todo" or blind) and world.claims < self.claims:
            claimed = world._replace(job=job._replace(status="todo").claim(run), claims=run)
            worker = Worker(run, may_retry=claimed.job.attempts < MAX_ATTEMPTS)
            yield (
                f"{name} claims run {run}",
                holding(claimed._replace(starts=world.starts + 1), name=name, worker=worker),
            )
            yield f"{name} claims run {run}, reply lost", claimed._replace(lost=run)
        if self.variant == "late reply" and world.lost:
            late = world._replace(lost=0, starts=world.starts + 1)
            yield (
                f"{name} hears of run {world.lost} late",
                holding(late, name=name, worker=Worker(world.lost)),
            )

    def _body(self, world: World, name: str, worker: Worker) -> Iterator[tuple[str, World]]:
        ends = [("succeeded", False), ("failed", False), ("interrupted", False)]
        if worker.may_retry or self.variant == "retries for ever":
            ends.append(("failed", True))
        if world.job.asked and world.job.run == worker.run:
            ends += [("aborted", worker.may_retry), ("abandoned", worker.may_retry)]
        for outcome, retry in ends:
            ended = worker._replace(outcome=outcome, retry=retry)
            yield f"{name}'s body: {outcome}{' (retry)' * retry}", holding(world, name=name, worker=ended)
        if not worker.within and not world.held:
            _, answer = world.job.finish_in_body(worker.run)
            if answer == "succeeded" or self.variant == "stale commit":
                yield (
                    f"{name}'s body finishes",
                    holding(world, name=name, worker=worker._replace(within="open")),
                )
            else:
                lost = worker._replace(outcome="failed", retry=worker.may_retry)
                yield f"{name}'s body finishes: {answer}", holding(world, name=name, worker=lost)

    def _within(self, world: World, name: str, worker: Worker) -> Iterator[tuple[str, World]]:
        after, _ = world.job.finish_in_body(worker.run)
        done = moved(world, after)._replace(effects=world.effects + 1)
        committed = worker._replace(within="committed")
        yield f"{name}'s body commits", holding(done, name=name, worker=committed)
        failed = worker._replace(outcome="failed", retry=worker.may_retry)
        yield (
            f"{name}'s body commits, reply lost",
            holding(done, name=name, worker=failed._replace(within="committed")),
        )
        yield f"{name} is killed as it commits", holding(done, name=name, worker=None)
        yield f"{name}'s body rolls back", holding(world, name=name, worker=failed._replace(within=""))

    def _finish(self, world: World, name: str, worker: Worker) -> Iterator[tuple[str, World]]:
        job = world.job
        after, answer = job.finish(worker.run, worker.outcome, retry=worker.retry, variant=self.variant)
        bad = "I3: a finish of another run was taken" if after != job and job.run != worker.run else ""
        if after.status == "failed" != job.status and worker.retry and worker.outcome != "abandoned":
            bad = bad or ("" if world.told else "not retried, though no person asked")
        if after.status == "todo" and job.run == worker.run and worker.outcome == "abandoned":
            bad = bad or "runs twice: it was abandoned, and put back"
        finished = moved(world, after, bad=bad)
        if answer == "todo" and after != job and worker.outcome == "interrupted":
            finished = finished._replace(starts=finished.starts - 1)
        yield f"{name} finishes run {worker.run}: {answer}", holding(finished, name=name, worker=None)
        yield f"{name} finishes run {worker.run}: {answer}, reply lost", finished

    def _others(self, world: World) -> Iterator[tuple[str, World]]:
        job = world.job
        owner = next((n for n in "ab" if (w := getattr(world, n)) and w.run == job.run), "")
        over, lost = (
            world,
            job.status == "doing" or (self.variant == "unguarded rescue" and job.status in FINAL),
        )
        if self.leases and owner:
            # Its lease is over: it has stopped its body just before.
            worker: Worker = getattr(world, owner)
            if not worker.outcome and self.variant != "outlives its lease":
                over = holding(world, name=owner, worker=worker._replace(outcome="interrupted"))
        if lost and not (self.variant == "asked is left" and job.asked):
            after, answer = job.rescue(max_crashes=MAX_CRASHES, variant=self.variant)
            yield f"rescue: {answer}", moved(over, after)
        if job.status == "doing" and not owner and world.lost == job.run:
            after = job.give_back()
            kept = world.lost if self.variant == "late reply" else 0
            yield f"given back: {after.status}", moved(world, after)._replace(lost=kept)
        if (after := job.time_out(variant=self.variant)) != job:
            yield "time out", moved(world, after)
        if (after := job.expire()) != job:
            yield PERSON + "expire", moved(world, after)

    def _person(self, world: World) -> Iterator[tuple[str, World]]:
        job = world.job
        for source, delete in (("user", False), ("user", True), ("tree", False)):
            after, answer = job.cancel(abort=True, delete=delete, source=source, variant=self.variant)
            told = "abort_requested" if answer.startswith("abort_") else world.told
            told = "cancelled" if answer == "cancelled" else told
            if (after, told) != (job, world.told):
                yield f"cancel by {source}: {answer}", moved(world, after)._replace(told=told)
        after, answer = job.cancel(force=True)
        if after != job:
            yield f"force: {answer}", moved(world, after)
        after, answer = job.delete_job()
        if after != job:
            yield f"delete, or prune: {answer}", moved(world, after)
        if world.retries < 1:
            after, answer = job.retry_job(variant=self.variant)
            if answer == "requeued":
                bad = "I5: an old request meets the new run" if after.asked else ""
                yield "retry", world._replace(job=after, retries=1, ends=0, starts=0, told="", bad=bad)


def holding(world: World, *, name: str, worker: Worker | None) -> World:
    """Return the world with this worker changed."""
    return world._replace(a=worker) if name == "a" else world._replace(b=worker)


def moved(world: World, after: JobModel, bad: str = "") -> World:
    """Return the world with the job moved on, and what is wrong with that."""
    before = world.job
    ends = world.ends + (after.status in FINAL and after.status != before.status)
    if before.status in FINAL and after.status not in {before.status, "gone"}:
        bad = bad or f"I2: {before.status} became {after.status}"
    if ends > 1:
        bad = bad or "I1: two ends"
    if world.told == "abort_requested" and after.status == "todo":
        bad = bad or "I5: runs again after an abort was asked for"
    if world.told == "abort_requested" and after.status == "doing" and not after.asked:
        bad = bad or "I5: the request is not to be seen any more"
    return world._replace(job=after, ends=ends, bad=bad)


def judged(before: World, world: World, search: Search) -> World:
    """Return the world with what is wrong whichever step has led there."""
    bad = world.bad
    if world.told == "cancelled" and world.job.status == "doing":
        bad = bad or "I6: runs though it was cancelled"
    if world.effects > 1 or (world.effects and world.job.status not in {"succeeded", "gone"}):
        bad = bad or "I4: effects twice, or of a job that has not succeeded"
    if world.starts > MAX_ATTEMPTS + MAX_CRASHES - 1:
        bad = bad or "I9: more starts than attempts and crashes allow"
    running = [w for w in (world.a, world.b) if w is not None and not w.outcome and w.within != "committed"]
    if search.leases and not search.people and len(running) > 1:
        bad = bad or "two bodies at once"
    a, b = world.a, world.b
    if (a or ()) > (b or ()):
        # The workers are alike: what may happen to the one may happen to the other.
        a, b = b, a
    starts = 0 if search.people else world.starts
    return world._replace(a=a, b=b, bad=bad, starts=starts, last=world.claims >= search.claims)
