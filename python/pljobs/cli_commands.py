"""The command line as a whole: what `pljobs --help` says, and which commands there are."""

from __future__ import annotations

import importlib.metadata

import click

from pljobs import (
    cli_act,
    cli_database,
    cli_demo,
    cli_doctor,
    cli_flow,
    cli_many,
    cli_read,
    cli_stop,
    cli_worker,
)
from pljobs.cli_base import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(importlib.metadata.version("pljobs"), prog_name="pljobs")
@click.option(
    "--url",
    envvar="PLJOBS_URL",
    metavar="CONNINFO",
    help="postgresql://... or key=value pairs. Default: PLJOBS_URL, else libpq's own variables.",
)
def cli(url: str | None) -> None:  # read by `connector`, from the context
    """Run, watch, cancel and abort the jobs of a PostgreSQL job queue.

    The database is named by --url, by PLJOBS_URL, or by libpq's own variables (PGHOST, PGDATABASE ...). On a
    terminal answers are tables; in a pipe they are plain columns, one line a row; with --json they are JSON.
    What is said about an answer goes to stderr.

    \b
    Exit codes:
      0  done
      1  error: no connection, no schema, no permission, a bug
      2  usage: an option or an argument that makes no sense
      3  not found: no job has this id
      4  refused in this state: the job runs (and --abort wasn't given), or is finished
      5  timed out, with --wait SECONDS
      6  a worker gave up a job that could not be stopped: start another
      7  doctor found warnings
      8  doctor found something critical
      130  interrupted by Ctrl-C
    """


for command in (
    cli_database.migrate,
    cli_database.schema,
    cli_database.healthcheck,
    cli_doctor.doctor,
    cli_worker.worker,
    cli_worker.manager,
    cli_act.defer,
    cli_stop.cancel,
    cli_many.rescind,
    cli_act.retry,
    cli_act.delete,
    cli_read.list_jobs,
    cli_read.show,
    cli_read.queues,
    cli_read.workers,
    cli_many.stuck,
    cli_act.pause,
    cli_act.resume,
    cli_flow.throttle,
    cli_database.prune,
    cli_database.rescue,
    cli_demo.demo,
):
    cli.add_command(command)
