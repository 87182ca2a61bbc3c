"""The model of sessions: who holds what, who waits for whom, who sees what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from model import JobModel
from sessions import Answer, Session

WHO = st.integers(0, 11)  # the session, and whether it begins a transaction
ROWS = ("row 0", "row 1")
# What a session may have to wait for, or may be kept from.
ALL = (*ROWS, "key 0", "key 1", "lane")


class Row(NamedTuple):
    """A job, and whether it is parked in its lane."""

    job: JobModel = JobModel()
    parked: bool = False


@dataclass(slots=True, eq=False)
class Transaction:
    """A session, what its transaction has written, and holds; what it waits for, and what comes then."""

    session: Session
    is_open: bool = False
    own: dict[int, Row] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)
    blocker: Transaction | None = None
    needs: Sequence[str] = ()
    then: Callable[[Answer], None] | None = None


class Sessions(RuleBasedStateMachine):
    """Two jobs, perhaps of one lane, and two to four sessions that call functions on them."""

    sessions: ClassVar[list[Session]]
    admin: ClassVar[Session]

    def begin_model(self, count: int, *, locked: bool) -> None:
        self.locked = locked
        self.turns = 0
        self.rows = [Row(), Row()]
        self.ids = [0, 0]
        self.all = [Transaction(session) for session in self.sessions[:count]]

    def at(self, who: int) -> Transaction:
        ready = [tx for tx in self.all if tx.blocker is None]
        tx = ready[who % len(ready)]
        if who >= 8 and not tx.is_open:
            tx.session.ask("BEGIN")
            tx.is_open = True
        return tx

    def holder(self, what: str) -> Transaction | None:
        return next((tx for tx in self.all if what in tx.holds), None)

    def may_take(self, tx: Transaction, what: str) -> bool:
        return self.holder(what) in {None, tx}

    def view(self, tx: Transaction | None) -> list[Row]:
        own = tx.own if tx is not None else {}
        return [own.get(place, row) for place, row in enumerate(self.rows)]

    def write(self, tx: Transaction, place: int, row: Row) -> None:
        """Lock a job's row, where there is one, and write it."""
        if self.view(tx)[place].job.status != "gone":
            tx.holds.add(f"row {place}")
            tx.own[place] = row

    def in_order(self, rows: list[Row], wanted: str = "todo") -> list[int]:
        places = [place for place, row in enumerate(rows) if row.job.status == wanted]
        return sorted(places, key=self.ids.__getitem__)

    def wake(self, tx: Transaction) -> int:
        """Wake the lane's first that nobody else holds; return how many were parked."""
        view = self.view(tx)
        free = [place for place in self.in_order(view) if self.may_take(tx, f"row {place}")]
        if not self.locked or not free:
            return 0
        self.write(tx, free[0], view[free[0]]._replace(parked=False))
        return view[free[0]].parked

    def row(self, tx: Transaction, place: int) -> list[str]:
        """What it takes to lock a job: nothing if it is gone."""
        return [f"row {place}"] if self.view(tx)[place].job.status != "gone" else []

    def call(
        self,
        tx: Transaction,
        query: str,
        params: dict[str, object],
        then: Callable[[Answer], None],
        *,
        needs: Sequence[str] = (),
        may_take: Sequence[str] = (),
    ) -> None:
        """Call a function that waits for what it needs, in that order, and then do that.

        What would wait in a queue or in a circle is left out, and what takes what somebody is about to get:
        the transaction in the way is ended instead.
        """
        touched = {*needs, *may_take, *(ROWS if self.locked else ())}
        held = [(what, self.holder(what)) for what in needs]
        blockers = [other for _, other in held if other is not None and other is not tx]
        waiting = [other for other in self.all if other.blocker is not None]
        if any(touched & set(other.needs) for other in waiting) or len(set(blockers)) > 1:
            in_the_way = [other.blocker for other in waiting if other.blocker] or blockers
            in_the_way = [other for other in in_the_way if other.blocker is None]
            self.turns += 1
            self.end(in_the_way[0], commit=self.turns % 2 == 0)
            return
        if not blockers:
            tx.holds.update(needs)
            answer = tx.session.ask(query, params)
            then(answer)
            self.settle(tx, failed=bool(answer.error))
            return
        blocker = blockers[0]
        if blocker.blocker is not None or any(other.blocker is blocker for other in waiting):
            return
        for what, other in held:
            if other is blocker:
                break
            tx.holds.add(what)
        tx.session.send(query, params)
        assert tx.session.waits_for(blocker.session, self.admin), f"does not wait: {query} {params}"
        tx.blocker, tx.needs, tx.then = blocker, needs, then

    def settle(self, tx: Transaction, *, failed: bool = False) -> None:
        """End the transaction of a call that was one by itself, or has failed."""
        if tx.is_open and failed:
            self.end(tx, commit=False)
        elif not tx.is_open:
            self.release(tx, commit=not failed)

    def end(self, tx: Transaction, *, commit: bool) -> None:
        assert not tx.session.ask("COMMIT" if commit else "ROLLBACK").error
        tx.is_open = False
        self.release(tx, commit=commit)

    def release(self, tx: Transaction, *, commit: bool) -> None:
        for place, row in tx.own.items() if commit else ():
            self.rows[place] = row
        tx.own.clear()
        tx.holds.clear()
        for other in self.all:
            if other.blocker is tx and other.then is not None:
                answer, then = other.session.answer(), other.then
                other.blocker = other.then = None
                gone = {f"row {place}" for place in (0, 1) if not self.row(other, place)}
                if gone & set(other.needs):  # whose lane it was, it did not learn
                    gone.add("lane")
                other.holds.update(set(other.needs) - gone)
                then(answer)
                self.settle(other, failed=bool(answer.error))

    def quiet(self, place: int) -> bool:
        return self.holder(f"row {place}") is None

    @precondition(lambda self: any(tx.is_open and tx.blocker is None for tx in self.all))
    @rule(first=st.booleans(), commit=st.booleans())
    def end_a_transaction(self, first: bool, commit: bool) -> None:
        # Rather one that somebody waits for.
        waited_for = [tx.blocker for tx in self.all if tx.blocker is not None and tx.blocker.blocker is None]
        ready = waited_for or [tx for tx in self.all if tx.is_open]
        self.end(ready[0 if first else -1], commit=commit)

    def teardown(self) -> None:
        for session in (self.admin, *self.sessions):
            session.reset()
