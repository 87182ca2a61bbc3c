"""Two applications that defer one job under one idempotency key, and repeat what was not answered."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

from explore import explore

VARIANTS = MappingProxyType(
    {
        "no key": ("I1: two", "each call defers a job"),
        "looks first": ("I1: two", "a call that sees no key defers, whoever is doing so at the moment"),
        "key by itself": ("I1: answered", "the key is committed before the job is"),
    }
)


class Caller(NamedTuple):
    """An application, and its transaction: idle, open, lost (sent again), told the job's id."""

    phase: str = "idle"
    is_new: bool = False


class Keys(NamedTuple):
    """What is committed: the key, the jobs; who asks; `gone`: the job has ended, and was pruned."""

    key: bool = False
    jobs: int = 0
    gone: bool = False
    callers: tuple[Caller, Caller] = (Caller(), Caller())
    bad: str = ""

    @property
    def ended(self) -> bool:
        return all(caller.phase == "told" for caller in self.callers)


def search(variant: str = "") -> tuple[int, list[str]]:
    """Return the number of states, and the way to one that breaks a rule."""
    return explore(Keys(), lambda keys: ((step, _judged(after)) for step, after in _steps(keys, variant)))


def _steps(keys: Keys, variant: str) -> Iterator[tuple[str, Keys]]:
    for who, (phase, is_new) in enumerate(keys.callers):
        other = keys.callers[1 - who]
        if phase in {"idle", "lost"}:
            # Who finds the key in a transaction that is open waits for its end.
            if not (other.phase == "open" and other.is_new) or variant in {"looks first", "no key"}:
                new = not keys.key or variant == "no key"
                opened = _put(keys, who, Caller("open", new))
                yield (
                    f"{who} defers: {'new' if new else 'known'}",
                    (opened._replace(key=True) if variant == "key by itself" else opened),
                )
        elif phase == "open":
            yield f"{who} rolls back", _put(keys, who, Caller())
            done = keys._replace(key=True, jobs=keys.jobs + is_new)
            yield f"{who} commits", _put(done, who, Caller("told"))
            yield f"{who} commits, reply lost", _put(done, who, Caller("lost"))
    if keys.jobs and not keys.gone:
        yield "the job is pruned", keys._replace(gone=True)


def _put(keys: Keys, who: int, caller: Caller) -> Keys:
    first, second = keys.callers
    return keys._replace(callers=(caller, second) if who == 0 else (first, caller))


def _judged(keys: Keys) -> Keys:
    if keys.jobs > 1:
        return keys._replace(bad="I1: two jobs of one key")
    if not keys.jobs and any(caller.phase == "told" for caller in keys.callers):
        return keys._replace(bad="I1: answered, and there is no job")
    return keys
