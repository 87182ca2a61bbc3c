"""A stranger walks through sql/README.md with psql alone, from install to remove, and is no superuser."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import re
import shlex
import subprocess
import threading
from collections.abc import Iterator

import psycopg
import pytest

from old_release import MIGRATIONS, OldRelease, login, old_release, run_pljobs
from pljobs.embedded import THROW_AWAY, Server, environment
from test_docs import REPO, Block, blocks
from waiting import wait_until

PAGE = REPO / "sql" / "README.md"
GROUPS = {f"pljobs_{name}" for name in ("owner", "reader", "producer", "worker", "canceller", "operator")}
REGISTER = "SELECT pljobs.register_worker_v2('mail', 'host', 4711, contract => 2) AS id \\gset\n"
FETCH = "SELECT task FROM pljobs.fetch_jobs_v1(:id, 5, '{mail}')"


class Walk:
    """The page, on a server of its own; `may_create_roles`: whether the owner of the database may."""

    def __init__(self, server: Server, *, may_create_roles: bool) -> None:
        self.server, self.may_create_roles = server, may_create_roles
        self.dba = "app_owner" if may_create_roles else "dba"
        self.left = blocks(PAGE, "shell", "sql")
        server.run_sql(
            f"CREATE ROLE app_owner LOGIN {'CREATEROLE' if may_create_roles else ''};"
            "CREATE ROLE dba LOGIN CREATEROLE; CREATE ROLE shop LOGIN; CREATE ROLE mail_worker LOGIN;"
            "CREATE ROLE ops LOGIN; CREATE DATABASE app OWNER app_owner"
        )

    def take(self, word: str) -> str:
        """Run the next blocks of the page, up to the one that has this in it; return what that said."""
        while True:
            block = self.left.pop(0)
            said = self._run(block)
            if word in block.text:
                return said

    def psql(self, role: str, text: str) -> str:
        """Run SQL as this role, as a file; return its rows."""
        return self._psql(["-X", "-d", "app", "-U", role, "-qAt", "-v", "ON_ERROR_STOP=1", "-f", "-"], text)

    def _run(self, block: Block) -> str:
        if block.language == "sql":
            match = re.match(r"-- As (\w+)", block.text)
            assert match, f"{block.page}:{block.line} does not say as whom"
            said = self.psql(match[1], block.text)
            for answer in re.findall(r";\s+-- (\S+)$", block.text, re.MULTILINE):
                assert answer in said.splitlines(), f"{block.page}:{block.line}: no {answer} in {said}"
            return said
        said = ""
        for line in block.text.splitlines():
            name, *arguments = shlex.split(line)
            assert name == "psql"
            said += self._psql([self.dba if argument == "dba" else argument for argument in arguments])
        return said

    def _psql(self, arguments: list[str], text: str | None = None) -> str:
        done = subprocess.run(
            [str(self.server.bin_dir / "psql"), *arguments],
            env={**environment(), "PGHOST": str(self.server.base)},
            cwd=REPO,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """A server without the groups: those are the cluster's."""
    with Server.start(server.bin_dir, settings=THROW_AWAY) as started:
        yield started


@pytest.mark.parametrize("before", ["nothing", "0.1.0"])
@pytest.mark.parametrize("may_create_roles", [True, False], ids=["may create roles", "may not"])
def test_the_page_leads_from_install_to_uninstall(
    own_server: Server, old_release: OldRelease, may_create_roles: bool, before: str
) -> None:
    walk = Walk(own_server, may_create_roles=may_create_roles)
    if before == "0.1.0":
        install = old_release.sql / "install.sql"
        walk.psql("app_owner", f"BEGIN; \\i '{install}'\nCOMMIT; SELECT pljobs.defer_job('former');")

    said = walk.take("install.sql")
    assert ("may not create the roles pljobs_owner, pljobs_reader" in said) is not may_create_roles
    if may_create_roles:
        assert "roles.sql" in walk.left.pop(0).text
    else:
        assert "may not" not in walk.take("roles.sql")
    walk.take("TO ops")
    owner = walk.psql("app_owner", "SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'pljobs'")
    assert owner == ("pljobs_owner\n" if may_create_roles and before == "nothing" else "app_owner\n")
    migrations = [line.split("|")[0] for line in walk.take("check_install").splitlines()]
    assert migrations == MIGRATIONS
    walk.take("indexes.sql")

    own_server.run_sql("ALTER TABLE pljobs.job ALTER COLUMN id RESTART WITH 33", "app")
    assert '34|cancelled||send_mail|{"to": "bob"}' in walk.take("unsubscribed").splitlines()
    assert "former" not in walk.psql("shop", "SELECT task FROM pljobs.jobs")
    assert walk.psql("mail_worker", REGISTER + FETCH) == "send_mail\n"
    assert "33|doing||mail|send_mail|1|1" in walk.take("an operator").splitlines()
    assert walk.psql("app_owner", "SELECT * FROM pljobs.check_install()") == ""

    walk.take("uninstall.sql")
    assert walk.psql("app_owner", "SELECT FROM pg_namespace WHERE nspname = 'pljobs'") == ""
    groups = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'pljobs%'"
    assert set(walk.psql("app_owner", groups).split()) == GROUPS
    walk.take("DROP ROLE")
    assert walk.psql("app_owner", groups) == ""
    assert walk.left == []


def test_an_install_by_a_superuser_belongs_to_a_group_that_nobody_logs_in_as(own_server: Server) -> None:
    walk = Walk(own_server, may_create_roles=False)
    install = f"BEGIN; \\i '{REPO / 'sql' / 'install.sql'}'\nCOMMIT;"
    walk.psql("postgres", install)
    assert walk.psql("postgres", "SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'pljobs'") == (
        "pljobs_owner\n"
    )
    owners = "SELECT DISTINCT proowner::regrole FROM pg_proc WHERE pronamespace = 'pljobs'::regnamespace"
    assert walk.psql("postgres", owners) == "pljobs_owner\n"
    assert walk.psql("postgres", "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'pljobs_owner'") == "f\n"


def test_roles_that_the_installer_of_another_database_makes_at_this_moment_are_no_obstacle(
    own_server: Server,
) -> None:
    walk = Walk(own_server, may_create_roles=True)
    said: list[str] = []
    with psycopg.connect(own_server.url()) as other, psycopg.connect(own_server.url()) as looks:
        other.execute("CREATE ROLE pljobs_owner; CREATE ROLE pljobs_worker")
        installing = threading.Thread(target=lambda: said.append(walk.take("install.sql")))
        installing.start()
        waits = "SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        wait_until(lambda: looks.execute(waits).fetchall(), what="it wants to make the same role")
        other.commit()
        installing.join()
    assert len(said) == 1
    assert walk.psql("app_owner", "SELECT * FROM pljobs.check_install()") == ""


def test_pljobs_migrate_leaves_alone_what_lacks_only_the_groups(own_server: Server) -> None:
    walk = Walk(own_server, may_create_roles=False)
    walk.take("install.sql")
    with psycopg.connect(login(own_server.url("app"), "app_owner")) as reader:
        reader.execute("SELECT FROM pljobs.jobs")
        done = run_pljobs(login(own_server.url("app"), "app_owner"), "migrate", "--lock-timeout", "1s")
    assert done.returncode == 0, done.stderr
