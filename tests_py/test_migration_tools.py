"""docs/migrations.md inside of other tools' transactions: its own code, run by Alembic and by Django."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from old_release import OWNER, login, old_db_url, old_release, old_scene_url, old_template, run_pljobs
from pljobs.embedded import Server, environment
from test_docs import REPO, blocks

FILE = "pljobs_0_2_0"
CODE = {
    tool: block.text
    for block in blocks(REPO / "docs" / "migrations.md", "python")
    for tool in ("alembic", "django")
    if f"from {tool}" in block.text
}
OWNERS = (
    "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    " AND relname IN ('alembic_version', 'django_migrations', 'later')"
)
ENV = """
import psycopg
from alembic import context
from sqlalchemy import create_engine

engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect({url!r}))
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
LATER = """
from alembic import op

revision = "later"
down_revision = "pljobs_0_2_0"


def upgrade() -> None:
    op.execute("CREATE TABLE later AS SELECT {expression} AS what")


def downgrade() -> None:
    op.execute("DROP TABLE later")
"""
SETTINGS = """
INSTALLED_APPS = ["shop"]
USE_TZ = True
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": {name!r}, "USER": {user!r},
                         "HOST": {host!r}, "PORT": {port!r}}}}}
"""


class Alembic:
    """A project with one revision, the page's, and one after it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.versions = folder / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
        (folder / "migrations" / "env.py").write_text(ENV.format(url=url))
        (self.versions / f"{FILE}.py").write_text(CODE["alembic"])
        self.write_sql(self.versions)
        self.then("1")

    def write_sql(self, folder: Path) -> None:
        done = run_pljobs("", "schema", "--sql")
        assert done.returncode == 0, done.stderr
        (folder / f"{FILE}.sql").write_text(done.stdout)

    def then(self, expression: str) -> None:
        """What comes after it, in the same transaction."""
        (self.versions / "later.py").write_text(LATER.format(expression=expression))

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.run("alembic", "upgrade", "head")

    def down(self) -> subprocess.CompletedProcess[str]:
        return self.run("alembic", "downgrade", "base")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env={**environment(), "DJANGO_SETTINGS_MODULE": "settings"},
            capture_output=True,
            text=True,
            check=False,
        )


class Django(Alembic):
    """A project with one migration, the page's, with one more operation."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.versions = folder / "shop" / "migrations"
        self.versions.mkdir(parents=True)
        parts = urlsplit(url)
        where = parse_qs(parts.query)
        (folder / "settings.py").write_text(
            SETTINGS.format(
                name=parts.path[1:], user=parts.username, host=where["host"][0], port=where["port"][0]
            )
        )
        for package in (folder / "shop", self.versions):
            (package / "__init__.py").touch()
        self.write_sql(self.versions)
        self.then("1")

    def then(self, expression: str) -> None:
        more = f'migrations.RunSQL("CREATE TABLE later AS SELECT {expression} AS what", "DROP TABLE later")'
        (self.versions / f"{FILE}.py").write_text(
            f"{CODE['django']}\n\nMigration.operations.append({more})\n"
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.run("django", "migrate", "shop")

    def down(self) -> subprocess.CompletedProcess[str]:
        return self.run("django", "migrate", "shop", "zero")


@pytest.fixture
def new_db_url(server: Server, old_template: str) -> Iterator[str]:
    """A database with nothing in it, of an owner who is no superuser."""
    server.run_sql(f"CREATE DATABASE tool OWNER {OWNER}")
    yield login(server.url("tool"), OWNER)
    server.drop_database("tool")


@pytest.mark.parametrize("tool", [Alembic, Django])
@pytest.mark.parametrize("before", ["new_db_url", "old_scene_url"])
def test_it_installs_or_upgrades_within_the_tools_transaction(
    tool: type[Alembic], before: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = request.getfixturevalue(before)
    project = tool(tmp_path / "project", url)
    for _ in range(2):  # the second time there is nothing to do
        done = project.up()
        assert done.returncode == 0, done.stdout + done.stderr
        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT * FROM pljobs.check_install()").fetchall() == []
            # What the tool did afterwards, it did where it should, and as itself.
            assert conn.execute("SELECT what FROM public.later").fetchall() == [(1,)]
            assert conn.execute(OWNERS).fetchall() == [(OWNER,)]

    done = project.down()
    assert done.returncode == 0, done.stdout + done.stderr
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT to_regnamespace('pljobs')").fetchone() == (None,)


@pytest.mark.parametrize("tool", [Alembic, Django])
def test_when_a_later_step_of_the_tools_transaction_fails_nothing_was_done(
    tool: type[Alembic], new_db_url: str, tmp_path: Path
) -> None:
    project = tool(tmp_path / "project", new_db_url)
    project.then("1 / 0")
    done = project.up()
    assert done.returncode != 0
    assert "division by zero" in done.stderr
    with psycopg.connect(new_db_url) as conn:
        assert conn.execute("SELECT to_regnamespace('pljobs')").fetchone() == (None,)

    project.then("1")
    done = project.up()
    assert done.returncode == 0, done.stdout + done.stderr
    with psycopg.connect(new_db_url) as conn:
        assert conn.execute("SELECT * FROM pljobs.check_install()").fetchall() == []
