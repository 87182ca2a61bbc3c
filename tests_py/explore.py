"""Search all that may happen from a beginning, nearest first, for what must never be."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol, TypeVar


class State(Hashable, Protocol):
    """One moment; `bad` names the rule that is broken then; once it has `ended`, nothing need happen."""

    @property
    def bad(self) -> str: ...
    @property
    def ended(self) -> bool: ...


S = TypeVar("S", bound=State)
PERSON = "person: "


def explore(start: S, steps: Callable[[S], Iterable[tuple[str, S]]]) -> tuple[int, list[str]]:
    """Return how many states there are, and the way to the nearest bad one: steps, then the rule.

    One rule is of all: from each, without a person, the end can be reached (I1: nothing is lost).
    """
    parents: dict[S, tuple[S, str] | None] = {start: None}
    before: dict[S, list[S]] = defaultdict(list)
    todo = deque([start])
    while todo:
        state = todo.popleft()
        if state.bad:
            return len(parents), [*_way(parents, state), state.bad]
        for step, after in steps(state):
            if after not in parents:
                parents[after] = (state, step)
                todo.append(after)
            if not step.startswith(PERSON):
                before[after].append(state)
    hopeful = [state for state in parents if state.ended]
    reached = set(hopeful)
    while hopeful:
        for state in before[hopeful.pop()]:
            if state not in reached:
                reached.add(state)
                hopeful.append(state)
    for state in parents:
        if state not in reached:
            return len(parents), [*_way(parents, state), "I1: it never ends"]
    return len(parents), []


def _way(parents: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    way: list[str] = []
    while (parent := parents[state]) is not None:
        state, step = parent
        way.append(step)
    return way[::-1]
