"""Who may do what: the matrix of docs/security.md, tried by logins that are neither superusers nor owners."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from matrix import GROUPS, Row, read_matrix
from pljobs.embedded import Server

MATRIX = read_matrix()
MISSING = 999_999
OF_COLUMNS = ["SELECT", "INSERT", "UPDATE", "REFERENCES"]


@dataclass(frozen=True)
class Login:
    """A login, its groups, and of whom it is a member."""

    name: str
    groups: tuple[str, ...] = ()
    member_of: tuple[str, ...] = ()
    becomes: str | None = None
    """Inherits nothing, and does this SET ROLE."""

    def may(self, row: Row) -> set[str]:
        return row.may(*self.groups)

    def owns(self, deferred_by: str) -> bool:
        if self.becomes is not None:
            return deferred_by == self.becomes
        return deferred_by in {self.name, *self.member_of}


ANN, BOB = "roles_ann", "roles_bob"
LOGINS = {
    login.name: login
    for login in (
        Login("roles_nobody"),
        Login("roles_reader", ("reader",)),
        Login(ANN, ("producer",)),
        Login(BOB, ("producer",)),
        Login("roles_worker", ("worker",)),
        Login("roles_canceller", ("canceller",)),
        Login("roles_operator", ("operator",)),
        Login("roles_ann_and_worker", ("producer", "worker"), (ANN,)),
        Login("roles_reading_producer", ("producer", "reader")),
        Login("roles_pool", ("producer",), (ANN, BOB), becomes=ANN),
    )
}


@dataclass(frozen=True)
class Probe:
    """A call, what it answers where it acts, and what where it finds nothing that the caller may know of.

    `%(job)s` is the job's id, `%(run)s` and `%(request)s` its run and request; `wants`: which of the jobs.
    """

    statement: str
    acts: str = ""
    wants: str = "waiting"
    finds_nothing: str | None = "not_found"
    commits: bool = False


def both(name: str, arguments: str, acts: str, wants: str = "waiting") -> dict[str, Probe]:
    """The plain function and the versioned one, which answers more columns."""
    return {
        name: Probe(f"SELECT pljobs.{name}({arguments})", acts, wants),
        f"{name}_v1": Probe(f"SELECT outcome FROM pljobs.{name}_v1({arguments})", acts, wants),
    }


def of_jobs(name: str, arguments: str, acts: str, wants: str = "waiting") -> dict[str, Probe]:
    """The plain function and the versioned one, which answer a row a job."""
    return {
        function: Probe(
            f"SELECT string_agg(c.job_id || ':' || c.outcome, ',') FROM pljobs.{function}({arguments}) AS c",
            "{job}:" + acts, wants, None,
        )
        for function in (name, f"{name}_v1")
    }  # fmt: skip


JOBS = "job_ids => ARRAY[%(job)s]::bigint[], dry_run => false"
ABOUT_JOBS: dict[str, Probe] = {
    **both("cancel_job", "%(job)s", "cancelled"),
    **of_jobs("cancel_jobs", JOBS, "cancelled"),
    **of_jobs("cancel_tree", "%(job)s", "cancelled"),
    **both("rescind_request", "%(job)s", "rescinded", "aborting"),
    **both("delete_job", "%(job)s", "deleted", "failed"),
    **both("retry_job", "%(job)s", "requeued", "failed"),
    **of_jobs("retry_jobs", JOBS, "requeued", "failed"),
    "cancel_jobs_in_batches": Probe(
        "CALL pljobs.cancel_jobs_in_batches(job_ids => ARRAY[%(job)s]::bigint[])", "1",
        finds_nothing="0", commits=True,
    ),
    "wait_for_job": Probe("CALL pljobs.wait_for_job(%(job)s, '0 s')", "failed", "failed", commits=True),
    "get_job_statuses_v1": Probe(
        "SELECT s.status FROM pljobs.get_job_statuses_v1(ARRAY[%(job)s]::bigint[]) AS s", "todo"
    ),
    "get_resolutions_v1": Probe(
        "SELECT r.resolution FROM pljobs.get_resolutions_v1(ARRAY[%(request)s]::bigint[]) AS r", "open",
        "aborting",
    ),
    "finish_jobs_v1": Probe(
        "SELECT f.status FROM pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object("
        "'job_id', %(job)s, 'run_id', %(run)s, 'outcome', 'succeeded'))) AS f",
        "succeeded", "running",
    ),
    "finish_job_v1": Probe("SELECT pljobs.finish_job_v1(%(job)s, %(run)s)", "succeeded", "running", "PJ011"),
    "fetch_jobs_v1": Probe(
        "SELECT f.args ->> 'secret' FROM pljobs.fetch_jobs_v1(%(worker)s, 1, ARRAY[%(queue)s]) AS f",
        "{deferred_by}", finds_nothing=None,
    ),
    "heartbeat_v1": Probe(
        "SELECT h.verdict FROM pljobs.heartbeat_v1(%(worker)s, ARRAY[%(run)s]::bigint[]) AS h"
        " WHERE h.run_id = %(run)s", "ok", "running", "lost",
    ),
}  # fmt: skip
OTHERS: dict[str, Probe] = {
    "get_contract_v1": Probe("SELECT newest FROM pljobs.get_contract_v1()", "3"),
    "defer_job": Probe("SELECT pljobs.defer_job('t') > 0", "True"),
    "defer_jobs_v2": Probe('SELECT count(*) FROM pljobs.defer_jobs_v2(\'[{"task": "t"}]\')', "1"),
    "defer_jobs_v3": Probe('SELECT count(*) FROM pljobs.defer_jobs_v3(\'[{"task": "t"}]\')', "1"),
    "notify_queues_v1": Probe("SELECT count(pljobs.notify_queues_v1('{a}'))", "1"),
    "next_fetch_v1": Probe("SELECT count(*) FROM pljobs.next_fetch_v1(1, '{nothing here}')", "1"),
    "defer_jobs_v1": Probe('SELECT cardinality(pljobs.defer_jobs_v1(\'[{"task": "t"}]\'))', "1"),
    "register_worker_v1": Probe("SELECT pljobs.register_worker_v1('w', 'h', 1) > 0", "True"),
    "register_worker_v2": Probe("SELECT pljobs.register_worker_v2('w', 'h', 1, 2) > 0", "True"),
    "unregister_worker_v1": Probe("SELECT pljobs.unregister_worker_v1(-1)", "not_found"),
    "enter_sql_v1": Probe("SELECT pljobs.enter_sql_v1(1, pg_backend_pid())", "entered"),
    "leave_sql_v1": Probe("SELECT pljobs.leave_sql_v1(1)::text", ""),
    "cancel_sql_v1": Probe("SELECT pljobs.cancel_sql_v1(1)", "none"),
    "defer_periodic_job_v1": Probe(
        "SELECT outcome FROM pljobs.defer_periodic_job_v1('p', clock_timestamp(), '{\"task\": \"t\"}')",
        "deferred",
    ),
    # The stalled ones, of both producers.
    "rescue_jobs": Probe("SELECT pljobs.rescue_jobs()", "2"),
    "rescue_jobs_v1": Probe("SELECT count(*) FROM pljobs.rescue_jobs_v1()", "2"),
    "enforce_limits": Probe("SELECT pljobs.enforce_limits()", "0"),
    "enforce_limits_v1": Probe("SELECT count(*) FROM pljobs.enforce_limits_v1()", "0"),
    "wake_lanes_v1": Probe("SELECT pljobs.wake_lanes_v1()", "0"),
    "prune_jobs": Probe("SELECT pljobs.prune_jobs('1 year')", "0"),
    "prune_jobs_v1": Probe("SELECT pljobs.prune_jobs_v1('1 year')", "0"),
    "prune_jobs_v2": Probe("SELECT pruned FROM pljobs.prune_jobs_v2('1 year', archive => true)", "0"),
    "prune_history_v1": Probe("SELECT pljobs.prune_history_v1('1 year')", "0"),
    "prune_history_v2": Probe("SELECT pruned FROM pljobs.prune_history_v2('1 year')", "0"),
    "drop_archive": Probe("SELECT pljobs.drop_archive('1 year')", "0"),
    "pause_queue": Probe("SELECT pljobs.pause_queue('a queue of its own')", "paused"),
    "pause_queue_v1": Probe("SELECT pljobs.pause_queue_v1('a queue of its own')", "paused"),
    "resume_queue": Probe("SELECT pljobs.resume_queue('nothing paused')", "not_paused"),
    "resume_queue_v1": Probe("SELECT pljobs.resume_queue_v1('nothing paused')", "not_paused"),
    "limit_queues": Probe(f"SELECT pljobs.limit_queues('{ANN}', 'defer', NULL)", "unchanged"),
    "throttle_queue": Probe("SELECT pljobs.throttle_queue('nothing throttled')", "unchanged"),
    "throttle_queue_v1": Probe("SELECT pljobs.throttle_queue_v1('nothing throttled')", "unchanged"),
    "throttle_task": Probe("SELECT pljobs.throttle_task('nothing throttled')", "unchanged"),
    "throttle_task_v1": Probe("SELECT pljobs.throttle_task_v1('nothing throttled')", "unchanged"),
    "check_install": Probe("SELECT count(*) FROM pljobs.check_install()", "0"),
}
VIEWS = {name: row for name, row in MATRIX.items() if row.kind == "view"}
# Which of a scene's jobs a view shows.
SHOWS = {"jobs": "failed", "history": "failed", "requests": "aborting", "stuck_aborts": "aborting",
         "stalled_jobs": "stalled", "archive": "archived"}  # fmt: skip
OF_EVERYBODY = {
    "queues": "SELECT count(*) > 0 FROM pljobs.queues",
    "throttles": "SELECT count(*) = 0 FROM pljobs.throttles",
    "workers": "SELECT count(*) > 0 FROM pljobs.workers",
    "queue_limits": "SELECT count(*) = 0 FROM pljobs.queue_limits",
    "health": "SELECT count(*) > 0 FROM pljobs.health",
}


@dataclass
class Scene:
    """A database with the jobs of two producers, and how to look at it as one of the logins."""

    url: str
    conn: psycopg.Connection
    worker: int = 0
    jobs: dict[tuple[str, str], dict[str, object]] = field(default_factory=dict)

    def as_login(self, login: Login) -> psycopg.Connection:
        conn = psycopg.connect(make_conninfo(self.url, user=login.name), autocommit=True)
        if login.becomes is not None:
            conn.execute(f"SET ROLE {login.becomes}".encode())
        return conn

    def make(self, deferred_by: str) -> None:
        """Defer a waiting, a failed, a running, an aborting, a stalled and an archived job, as this login."""
        for state in ("waiting", "failed", "running", "aborting", "stalled", "archived"):
            self.jobs[deferred_by, state] = self.job(deferred_by, state)

    def job(self, deferred_by: str, state: str) -> dict[str, object]:
        queue = f"{deferred_by} {state}"
        with self.as_login(LOGINS[deferred_by]) as theirs:
            job = one(
                theirs, "SELECT pljobs.defer_job('t', %s::jsonb, %s)",
                [json.dumps({"secret": deferred_by}), queue],
            )  # fmt: skip
        made = {"job": job, "queue": queue, "deferred_by": deferred_by, "worker": self.worker, "run": 0}
        made["request"] = 0
        if state == "waiting":
            return made
        worker: object = self.worker
        if state == "stalled":
            worker = one(self.conn, "SELECT pljobs.register_worker_v1('lost', 'h', 1)")
        made["run"] = one(
            self.conn, "SELECT run_id FROM pljobs.fetch_jobs_v1(%s, 1, ARRAY[%s])", [worker, queue]
        )
        if state in {"failed", "archived"}:
            end = {"job_id": job, "run_id": made["run"], "outcome": "failed", "message": "m", "error": "e"}
            self.conn.execute("SELECT pljobs.finish_jobs_v1(%s::jsonb)", [json.dumps([end])])
            if state == "archived":
                self.conn.execute("SELECT pljobs.prune_jobs('0', queue => %s, archive => true)", [queue])
        elif state == "aborting":
            made["request"] = one(
                self.conn, "SELECT request_id FROM pljobs.cancel_job_v1(%s, abort => true)", [job]
            )
        elif state == "stalled":
            self.conn.execute("SELECT pljobs.unregister_worker_v1(%s)", [worker])
        return made


def one(
    conn: psycopg.Connection, statement: str, params: Sequence[object] | Mapping[str, object] = ()
) -> object:
    """Return the first column of the first row; None where there is no row."""
    row = conn.execute(statement.encode(), params or None).fetchone()
    return row[0] if row is not None else None


@pytest.fixture(scope="module")
def scene(server: Server, template: str) -> Iterator[Scene]:
    url = server.create_database("roles", template)
    for login in LOGINS.values():
        inherits = "" if login.becomes is None else "NOINHERIT"
        server.run_sql(f"CREATE ROLE {login.name} LOGIN {inherits}")
    for login in LOGINS.values():
        for group in login.groups if login.becomes is None else ():
            server.run_sql(f"GRANT pljobs_{group} TO {login.name}")
        for other in login.member_of:
            server.run_sql(f"GRANT {other} TO {login.name}")
            server.run_sql(f"GRANT CONNECT ON DATABASE roles TO {login.name}")
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            made = Scene(url, conn)
            worker = one(conn, "SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 day')")
            assert isinstance(worker, int)
            made.worker = worker
            made.make(ANN)
            made.make(BOB)
            yield made
    finally:
        server.drop_database("roles")
        for login in reversed(LOGINS.values()):
            server.run_sql(f"DROP ROLE {login.name}")


def answer(conn: psycopg.Connection, probe: Probe, params: dict[str, object]) -> str | None:
    """What a call answers, as text, or the code of its error; then it is as if it had not been called."""
    try:
        if probe.commits:
            return _text(one(conn, probe.statement, params))
        with conn.transaction(force_rollback=True):
            return _text(one(conn, probe.statement, params))
    except psycopg.Error as error:
        return error.sqlstate


def _text(value: object) -> str | None:
    return None if value is None else str(value)


# The page and the database


def test_the_matrix_lists_every_public_function_and_view(conn: psycopg.Connection) -> None:
    there = conn.execute(
        "SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'pljobs'::regnamespace UNION"
        " SELECT 'view', relname FROM pg_class WHERE relnamespace = 'pljobs'::regnamespace AND relkind = 'v'"
    ).fetchall()
    assert {(row.kind, row.name) for row in MATRIX.values()} == {
        (kind, name) for kind, name in there if not name.startswith("_")
    }


def test_the_matrix_is_what_is_granted(conn: psycopg.Connection) -> None:
    listed = conn.execute("SELECT kind, name, grantees FROM pljobs._privileges()").fetchall()
    assert {(kind, name): set(grantees) for kind, name, grantees in listed} == {
        ("schema", "pljobs"): {f"pljobs_{group}" for group in GROUPS},
        **{(row.kind, row.name): row.grantees for row in MATRIX.values()},
    }


def test_every_function_of_the_matrix_is_tried() -> None:
    assert ABOUT_JOBS.keys() | OTHERS.keys() == MATRIX.keys() - VIEWS.keys()
    assert not ABOUT_JOBS.keys() & OTHERS.keys()
    assert SHOWS.keys() | OF_EVERYBODY.keys() == VIEWS.keys()
    of_jobs = {"own", "all", "all, masked"}
    for name, row in MATRIX.items():
        words = set(row.cells.values()) & (of_jobs | {"yes"})
        assert words <= (of_jobs if name in ABOUT_JOBS.keys() | SHOWS.keys() else {"yes"}), name


@pytest.mark.parametrize("login", LOGINS.values(), ids=lambda login: login.name)
def test_a_login_has_exactly_the_rights_of_the_matrix(scene: Scene, login: Login) -> None:
    role = login.becomes or login.name
    functions = scene.conn.execute(
        "SELECT proname, has_function_privilege(%s, oid, 'EXECUTE') FROM pg_proc"
        " WHERE pronamespace = 'pljobs'::regnamespace",
        [role],
    ).fetchall()
    assert {name for name, may in functions if may} == {
        name for name in ABOUT_JOBS.keys() | OTHERS.keys() if login.may(MATRIX[name])
    }
    relations = scene.conn.execute(
        "SELECT relname, p FROM pg_class, unnest(%(privileges)s::text[]) AS p"
        " WHERE relnamespace = 'pljobs'::regnamespace AND relkind IN ('r', 'v')"
        " AND (has_table_privilege(%(role)s, oid, p)"
        " OR p = ANY (%(of_columns)s) AND has_any_column_privilege(%(role)s, oid, p))",
        {
            "role": role,
            "privileges": ["DELETE", "TRUNCATE", "TRIGGER", *OF_COLUMNS],
            "of_columns": OF_COLUMNS,
        },
    ).fetchall()
    assert set(relations) == {(name, "SELECT") for name, row in VIEWS.items() if login.may(row)}


# What really happens


@pytest.mark.parametrize("name", sorted(ABOUT_JOBS))
@pytest.mark.parametrize("login", LOGINS.values(), ids=lambda login: login.name)
def test_a_call_about_a_job_does_what_the_matrix_says(scene: Scene, login: Login, name: str) -> None:
    probe, words = ABOUT_JOBS[name], login.may(MATRIX[name])
    with scene.as_login(login) as conn:
        for deferred_by in (ANN, BOB):
            # What commits gets a job of its own.
            job = (
                scene.job(deferred_by, probe.wants)
                if probe.commits and probe.wants == "waiting"
                else scene.jobs[deferred_by, probe.wants]
            )
            answered = answer(conn, probe, job)
            if not words:
                assert answered == "42501"
            elif "all" in words or ("own" in words and login.owns(deferred_by)):
                assert answered == probe.acts.format_map(job), f"{deferred_by}'s job"
            else:
                assert answered == probe.finds_nothing, f"{deferred_by}'s job"
        missing = {
            "job": MISSING,
            "run": MISSING,
            "request": MISSING,
            "queue": "no such",
            "worker": scene.worker,
        }
        assert answer(conn, probe, missing) == (probe.finds_nothing if words else "42501")


@pytest.mark.parametrize("login", LOGINS.values(), ids=lambda login: login.name)
def test_another_call_is_let_through_where_the_matrix_says(scene: Scene, login: Login) -> None:
    with scene.as_login(login) as conn:
        answers = {name: answer(conn, probe, {}) for name, probe in OTHERS.items()}
    assert answers == {
        name: probe.acts if login.may(MATRIX[name]) else "42501" for name, probe in OTHERS.items()
    }


@pytest.mark.parametrize("name", sorted(SHOWS))
@pytest.mark.parametrize("login", LOGINS.values(), ids=lambda login: login.name)
def test_a_view_shows_the_jobs_that_the_matrix_says(scene: Scene, login: Login, name: str) -> None:
    words = login.may(MATRIX[name])
    key = "id" if name.endswith("jobs") or name == "archive" else "job_id"
    with scene.as_login(login) as conn:
        for deferred_by in (ANN, BOB):
            job = scene.jobs[deferred_by, SHOWS[name]]
            probe = Probe(f"SELECT count(*) > 0 FROM pljobs.{name} WHERE {key} = %(job)s")
            shown = bool(words - {"own"}) or ("own" in words and login.owns(deferred_by))
            assert answer(conn, probe, job) == (str(shown) if words else "42501")


@pytest.mark.parametrize("login", LOGINS.values(), ids=lambda login: login.name)
def test_what_is_in_a_job_is_masked_where_the_matrix_says(scene: Scene, login: Login) -> None:
    words = login.may(MATRIX["jobs"])
    with scene.as_login(login) as conn:
        for deferred_by in (ANN, BOB):
            job = scene.jobs[deferred_by, "failed"]
            statement = (
                "SELECT concat_ws(' ', args ->> 'secret', message, error) FROM pljobs.jobs WHERE id = %(job)s"
            )
            archived = Probe(statement.replace("pljobs.jobs", "pljobs.archive"))
            in_archive = answer(conn, archived, scene.jobs[deferred_by, "archived"])
            detail = "SELECT string_agg(detail, ' ') FROM pljobs.history WHERE job_id = %(job)s"
            seen = answer(conn, Probe(statement), job), answer(conn, Probe(detail), job)
            if not words:
                assert {*seen, in_archive} == {"42501"}
            elif "all" in words or ("own" in words and login.owns(deferred_by)):
                assert seen == (f"{deferred_by} m e", "m\ne")
                assert in_archive == seen[0]
            elif "all, masked" in words:
                assert seen == ("", None)
                assert in_archive == ""
            else:
                assert seen == (None, None)
                assert in_archive is None


@pytest.mark.parametrize("login", LOGINS.values(), ids=lambda login: login.name)
def test_views_of_no_jobs_are_read_where_the_matrix_says(scene: Scene, login: Login) -> None:
    with scene.as_login(login) as conn:
        answers = {name: answer(conn, Probe(statement), {}) for name, statement in OF_EVERYBODY.items()}
    assert answers == {name: "True" if login.may(VIEWS[name]) else "42501" for name in OF_EVERYBODY}


@pytest.mark.parametrize("login", LOGINS.values(), ids=lambda login: login.name)
def test_nobody_reads_or_writes_a_table(scene: Scene, login: Login) -> None:
    tables = scene.conn.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pljobs'::regnamespace AND relkind = 'r'"
    ).fetchall()
    with scene.as_login(login) as conn:
        for (table,) in tables:
            assert answer(conn, Probe(f"SELECT 1 FROM pljobs.{table}"), {}) == "42501"
            assert answer(conn, Probe(f"DELETE FROM pljobs.{table} RETURNING 1"), {}) == "42501"
        assert answer(conn, Probe("SELECT nextval('pljobs.run_id')"), {}) == "42501"
        assert answer(conn, Probe("SELECT * FROM pljobs._scope"), {}) == "42501"


def test_a_pool_is_nobody_until_it_becomes_one_of_its_members(scene: Scene) -> None:
    with psycopg.connect(make_conninfo(scene.url, user="roles_pool"), autocommit=True) as conn:
        job = scene.jobs[ANN, "waiting"]
        assert answer(conn, ABOUT_JOBS["cancel_job"], job) == "42501"
        conn.execute(f"SET ROLE {BOB}".encode())
        assert answer(conn, ABOUT_JOBS["cancel_job"], job) == "not_found"
        assert answer(conn, ABOUT_JOBS["cancel_job"], scene.jobs[BOB, "waiting"]) == "cancelled"


def test_who_did_it_is_the_login_whatever_an_argument_says(scene: Scene) -> None:
    job = scene.job(ANN, "waiting")
    with scene.as_login(LOGINS["roles_canceller"]) as conn:
        conn.execute("SELECT pljobs.cancel_job(%s, actor => 'postgres')", [job["job"]])
    found = scene.conn.execute(
        "SELECT requested_by, actor FROM pljobs.requests WHERE job_id = %s", [job["job"]]
    )
    assert found.fetchone() == ("roles_canceller", "postgres")
