"""The command demo."""

from __future__ import annotations

from pathlib import Path

import click

from pljobs.cli_base import Exit, Failure


@click.command()
@click.argument(
    "folder", required=False, type=click.Path(exists=True, file_okay=False, readable=True, path_type=Path)
)
@click.option("--stay", is_flag=True, help="Leave a job running, to abort it by hand from psql.")
@click.option("--stop", is_flag=True, help="Stop the server of an earlier demo, and remove its folder.")
@click.option(
    "--home",
    envvar="PLJOBS_DEMO_HOME",
    type=click.Path(path_type=Path),
    help="An empty folder for PostgreSQL. Default: in ~/.local/state (root: /var/lib).",
)
def demo(*, folder: Path | None, stay: bool, stop: bool, home: Path | None) -> None:
    """Show it on your own files, in an embedded PostgreSQL.

    Hashes every text file under FOLDER, one job a file, and counts its words. Meanwhile it stops six jobs:
    it cancels a waiting one, deletes another, aborts two that run, cancels a statement, and kills a process,
    from psql and from Python. FOLDER is by default the checkout that pljobs runs from, else the current
    folder.
    """
    from pljobs import demo as story

    if not stop:
        story.run(folder, home=home, stay=stay)
    elif folder is not None or stay:
        raise Failure("--stop goes with nothing but --home", Exit.USAGE)
    else:
        story.stop(home=home)
