"""Each row of the fault matrix, as often as `make test` has time for; `make chaos` repeats them for long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.rows import Row, all_rows
from chaos.stage import Stage
from servers import bin_dir

FIRST_SEED = 20


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    wanted = os.environ.get("PLJOBS_TEST_PG", "18")
    folder = Path(wanted) if "/" in wanted else bin_dir(wanted)
    with Stage(folder, tmp_path_factory.mktemp("chaos"), long=False) as made:
        yield made


@pytest.mark.parametrize(
    ("row", "seed"),
    [
        pytest.param(row, FIRST_SEED + number, id=f"{row.name}-{FIRST_SEED + number}")
        for row in all_rows()
        for number in range(row.push)
    ],
)
def test_no_rule_breaks_under(row: Row, seed: int, stage: Stage) -> None:
    with stage.rig(row, seed) as rig:
        row.repetition(rig)
        print(f"{row.name} {row.fault}: {rig.ended}, {dict(rig.harms)}, {dict(rig.notes)}")
