"""A PostgreSQL job queue whose every transition is a SQL function."""

from __future__ import annotations

from pljobs import exceptions, jobs
from pljobs.aborting import AbortRequest
from pljobs.answers import CancelResult, DeleteResult, JobAnswer, RescindResult, RetryResult, TreeAnswer
from pljobs.app import App
from pljobs.blueprints import Blueprint
from pljobs.connector import PsycopgConnector, SyncPsycopgConnector
from pljobs.exceptions import JobAborted
from pljobs.job_context import JobContext, current_context
from pljobs.jobs import AbortReason, DeleteJobCondition, Job, Status
from pljobs.logs import JobLogFilter
from pljobs.manager import JobManager
from pljobs.retry import BaseRetryStrategy, RetryDecision, RetryStrategy
from pljobs.tasks import Task

__all__ = [
    "AbortReason",
    "AbortRequest",
    "App",
    "BaseRetryStrategy",
    "Blueprint",
    "CancelResult",
    "DeleteJobCondition",
    "DeleteResult",
    "Job",
    "JobAborted",
    "JobAnswer",
    "JobContext",
    "JobLogFilter",
    "JobManager",
    "PsycopgConnector",
    "RescindResult",
    "RetryDecision",
    "RetryResult",
    "RetryStrategy",
    "Status",
    "SyncPsycopgConnector",
    "Task",
    "TreeAnswer",
    "current_context",
    "exceptions",
    "jobs",
]
