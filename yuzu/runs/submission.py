"""Jobs of a scheduler, through submitit: an array whose tasks share a run, and are put in the queue again when they are
stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from yuzu.errors import YuzuError, one_line

CLUSTERS = ("slurm", "local")
TIMEOUT = 24 * 60  # minutes of a job, after which it goes on in another one


class Requeued:
    """A function without arguments, which goes on in a new job when the scheduler stops the old one."""

    def __init__(self, function: Callable[..., int], *arguments: Any) -> None:
        self._function, self._arguments = function, arguments

    def __call__(self) -> int:
        return self._function(*self._arguments)

    def checkpoint(self) -> Any:
        """Called by submitit before a job's time is over, or when it is preempted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(function: Requeued, folder: Path, cluster: str, jobs: int, settings: dict[str, Any]) -> list[Any]:
    """Submit an array of ``jobs`` tasks; ``settings`` are those of submitit. Logs are written into ``folder``.

    Raises
    ------
    ImportError
        If submitit is not installed.
    YuzuError
        If the scheduler is not there, or refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("jobs of a scheduler need submitit: pip install 'yuzu-ism[submit]'") from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "yuzu", "timeout_min": TIMEOUT, **settings})
        with executor.batch():
            found = [executor.submit(function) for _ in range(jobs)]
    except (RuntimeError, NameError, TypeError, ValueError, OSError, submitit.core.utils.FailedJobError) as error:
        raise YuzuError(f"submit: {cluster} takes no jobs: {one_line(error)}") from error
    return found


def wait(jobs: list[Any]) -> list[str]:
    """Wait for jobs, and return what those that failed say."""
    import submitit

    errors: dict[str, None] = {}
    for job in jobs:
        try:
            job.result()
        except submitit.core.utils.UncompletedJobError as error:
            errors[f"job {job.job_id} ended without a result: {one_line(error)}"] = None
        except submitit.core.utils.FailedJobError as error:
            last = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason"
            errors[last] = None
    return list(errors)
