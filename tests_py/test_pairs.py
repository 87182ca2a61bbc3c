"""Each transition against each other on one job: both at once are as one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from pairs import CALLS, STATES, Races, differs
from sessions import sessions

PAIRS = list(product(CALLS, CALLS))


@pytest.fixture
def races(admin_url: str) -> Iterator[Races]:
    with sessions(admin_url, 4) as opened:
        made = Races(opened[0], opened[1], opened[2], opened[3])
        made.install()
        yield made


def wrong(races: Races, pairs: list[tuple[str, str]]) -> list[str]:
    """Run races of these pairs; return what is wrong with some."""
    found = (differs(races, *pair, commit=commit) for pair in pairs for commit in (True, False))
    return [what for what in found if what]


@pytest.mark.timeout(600)
def test_two_transitions_at_once_are_one_after_the_other(races: Races) -> None:
    """Each pair in two of the states in which it has something to race for; the others in one state."""
    bad = []
    left = dict.fromkeys(PAIRS, 2)
    for state in STATES:
        races.arrange(state, "lane")
        chosen = [pair for pair in PAIRS if left[pair] and races.matters(*pair)]
        bad += [f"{state}: {what}" for what in wrong(races, chosen)]
        for pair in chosen:
            left[pair] -= 1
    races.arrange("doing", "lane")
    bad += wrong(races, [pair for pair in PAIRS if left[pair] == 2])
    assert not bad, f"{len(bad)}:\n" + "\n".join(bad[:10])
    assert sum(times < 2 for times in left.values()) > len(PAIRS) / 2


@pytest.mark.chaos
@pytest.mark.timeout(0)
@pytest.mark.parametrize("lane", ["lane", None], ids=["lane", "no lane"])
@pytest.mark.parametrize("state", STATES)
def test_any_two_transitions_in_any_state_are_one_after_the_other(
    races: Races, state: str, lane: str | None
) -> None:
    races.arrange(state, lane)
    bad = wrong(races, PAIRS)
    assert not bad, f"{len(bad)} of {2 * len(PAIRS)}:\n" + "\n".join(bad[:10])
