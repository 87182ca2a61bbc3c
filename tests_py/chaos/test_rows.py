"""Each row of the fault matrix, as often as `make test` has time for; `make chaos` repeats them for long."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.rows import Impossible, Row, all_rows
from chaos.stage import Stage
from servers import bin_dir

FIRST_SEED = 20
WANTED = os.environ.get("PLJOBS_TEST_PG", "18")
# Those that could differ from major to major; the others are run on 18.
ON_EACH_MAJOR = {"W1", "W2", "W3", "D1", "N2"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = Path(WANTED) if "/" in WANTED else bin_dir(WANTED)
    with Stage(folder, tmp_path_factory.mktemp("chaos"), long=False) as made:
        yield made


@pytest.mark.parametrize(
    ("row", "seed"),
    [
        pytest.param(row, FIRST_SEED + number, id=f"{row.name}-{FIRST_SEED + number}")
        for row in all_rows()
        if WANTED == "18" or row.name in ON_EACH_MAJOR
        for number in range(row.push)
    ],
)
def test_no_rule_breaks_under(row: Row, seed: int, stage: Stage) -> None:
    with stage.rig(row, seed) as rig:
        try:
            row.repetition(rig)
        except Impossible as why:
            pytest.skip(str(why))
        print(f"{row.name} {row.fault}: {rig.ended}, {dict(rig.harms)}, {dict(rig.notes)}")


def test_the_page_on_reliability_has_each_row_under_its_name() -> None:
    page = Path(__file__).parents[2] / "docs" / "reliability.md"
    shown = re.findall(r"^\| (\w+) \| ([^|]*) \| \d+, \d+ \|", page.read_text(), re.MULTILINE)
    # The figures of the soak are told in the text.
    assert dict(shown) == {row.name: row.fault for row in all_rows() if row.name != "X3"}
