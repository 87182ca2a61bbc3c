"""Two jobs of one lock, two workers, a person: transactions, step by step as they lock and look."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

from explore import PERSON, explore

VARIANTS = MappingProxyType(
    {
        "looks before the lane": ("I11", "a fetch decides by what it saw before it had the lane"),
        "no lane": ("I11", "a fetch takes no lane"),
        "no wake": ("I1", "who ends a lane's job wakes nobody"),
        "wakes before the lane": ("I1", "who ends a lane's job looks for the next before it has the lane"),
    }
)
JOBS = (0, 1)
NAMES = ("a", "b", "p")
READY, PARKED, DOING, DONE = "ready", "parked", "doing", "done"


class Session(NamedTuple):
    """An open transaction: what it does, how far it is, what it holds, what it has written or decided."""

    verb: str
    phase: int
    rows: frozenset[int]
    lane: bool = False
    writes: tuple[tuple[int, str], ...] = ()


class Lane(NamedTuple):
    """What is committed, and who is at work."""

    jobs: tuple[str, str] = (READY, READY)
    open: tuple[Session | None, ...] = (None, None, None)
    retries: int = 0
    bad: str = ""

    @property
    def ended(self) -> bool:
        return self.jobs == (DONE, DONE)


def search(variant: str = "", *, person: bool = True) -> tuple[int, list[str]]:
    """Return the number of states, and the way to one that breaks a rule. With a person the sweep helps."""
    return explore(Lane(), lambda lane: steps(lane, variant, person=person))


def steps(lane: Lane, variant: str, *, person: bool) -> Iterator[tuple[str, Lane]]:
    """Go through all that may happen next."""
    for who, name in enumerate(NAMES[: 3 if person else 2]):
        session = lane.open[who]
        prefix = PERSON if name == "p" else f"{name}: "
        if session is None:
            begun = _person(lane) if name == "p" else _worker(lane)
            yield from ((prefix + what, _put(lane, who, opened)) for what, opened in begun)
            if name == "p" and lane.retries < 1 and lane.jobs[0] == DONE and 0 not in _held(lane):
                yield prefix + "retries job 0", lane._replace(jobs=(READY, lane.jobs[1]), retries=1)
            continue
        if session.verb == "fetch":
            moves = _fetch(lane, who, session, variant)
        elif session.verb == "finish":
            moves = _finish(lane, who, session, variant)
        else:
            moves = iter([("rolls back", _put(lane, who, None)), ("commits", _committed(lane, who, session))])
        # What a person has begun ends by itself: at last its connection is closed.
        yield from ((f"{name}: {session.verb} {what}", after) for what, after in moves)
    if person and DOING not in lane.jobs and all(session is None for session in lane.open):
        head = _head(lane.jobs)
        if head is not None and lane.jobs[head] == PARKED:
            yield "sweep", lane._replace(jobs=_with(lane.jobs, ((head, READY),)))


def _worker(lane: Lane) -> Iterator[tuple[str, Session]]:
    free = [job for job in JOBS if job not in _held(lane)]
    ready = [job for job in free if lane.jobs[job] == READY]
    for count in range(1, len(ready) + 1):
        yield f"fetch locks {ready[:count]}", Session("fetch", 1, frozenset(ready[:count]))
    for job in free:
        if lane.jobs[job] == DOING:
            yield f"finish of {job}", Session("finish", 1, frozenset([job]), writes=((job, DONE),))


def _person(lane: Lane) -> Iterator[tuple[str, Session]]:
    for job in JOBS:
        if job not in _held(lane) and lane.jobs[job] != DONE:
            opened = Session("cancel", 1, frozenset([job]), writes=((job, DONE),))
            yield f"cancels {job}, by force if it runs", _woken(lane, opened)


def _fetch(lane: Lane, who: int, session: Session, variant: str) -> Iterator[tuple[str, Lane]]:
    takes_lane, looks = (2, 1) if variant == "looks before the lane" else (1, 2)
    if session.phase == takes_lane:
        if variant != "no lane" and _taken(lane):
            yield "finds the lane taken", _put(lane, who, None)
        else:
            yield "takes the lane", _put(lane, who, session._replace(phase=session.phase + 1, lane=True))
    elif session.phase == looks:
        busy, head = DOING in lane.jobs, _head(lane.jobs)
        starts = [] if busy or head not in session.rows else [(head, DOING)]
        parks = [(job, PARKED) for job in session.rows if busy or job != head]
        wakes = not busy and head is not None and head not in session.rows and lane.jobs[head] == PARKED
        more = frozenset([head]) if wakes and head is not None and head not in _held(lane) else frozenset()
        writes = (*starts, *parks, *((job, READY) for job in more))
        decided = session._replace(phase=session.phase + 1, rows=session.rows | more, writes=writes)
        yield f"decides {writes}", _put(lane, who, decided)
    else:
        yield "commits", _committed(lane, who, session)


def _finish(lane: Lane, who: int, session: Session, variant: str) -> Iterator[tuple[str, Lane]]:
    takes_lane, wakes = (2, 1) if variant == "wakes before the lane" else (1, 2)
    if session.phase == takes_lane:
        if not _taken(lane):
            yield "takes the lane", _put(lane, who, session._replace(phase=session.phase + 1, lane=True))
    elif session.phase == wakes:
        woken = session if variant == "no wake" else _woken(lane, session)
        yield "wakes", _put(lane, who, woken._replace(phase=session.phase + 1))
    else:
        yield "commits", _committed(lane, who, session)
    yield "is killed", _put(lane, who, None)


def _woken(lane: Lane, session: Session) -> Session:
    """Let it wake the first that waits, passing over what others hold."""
    others = _held(lane) - session.rows
    seen = _with(lane.jobs, session.writes)
    first = next((job for job in JOBS if seen[job] in {READY, PARKED} and job not in others), None)
    if first is None:
        return session
    woken = ((first, READY),) if seen[first] == PARKED else ()
    return session._replace(rows=session.rows | {first}, writes=session.writes + woken)


def _head(jobs: tuple[str, str]) -> int | None:
    return next((job for job in JOBS if jobs[job] in {READY, PARKED}), None)


def _held(lane: Lane) -> frozenset[int]:
    return frozenset(row for session in lane.open if session is not None for row in session.rows)


def _taken(lane: Lane) -> bool:
    return any(session is not None and session.lane for session in lane.open)


def _with(jobs: tuple[str, str], writes: tuple[tuple[int, str], ...]) -> tuple[str, str]:
    changed = dict(writes)
    return (changed.get(0, jobs[0]), changed.get(1, jobs[1]))


def _put(lane: Lane, who: int, session: Session | None) -> Lane:
    return lane._replace(open=tuple(session if at == who else was for at, was in enumerate(lane.open)))


def _committed(lane: Lane, who: int, session: Session) -> Lane:
    jobs = _with(lane.jobs, session.writes)
    bad = "I11: two jobs of one lock run" if jobs == (DOING, DOING) else lane.bad
    return _put(lane, who, None)._replace(jobs=jobs, bad=bad)
