"""P2, its long part: thousands of names."""

from __future__ import annotations

from chaos.rig import Rig
from chaos.rows import row
from names import check_many


@row("P2", "names from hell", invariants="stored or refused, LISTEN = NOTIFY, I14", push=0, long=40)
def names(rig: Rig) -> None:
    rig.allow("PJ001", "PJ002")
    with rig.connect() as conn:
        rig.harms["names"] += check_many(conn, 100, rig.seed)
    rig.check()
