"""``hydra/launcher=submitit_slurm``: the cells of a grid as an array job of Slurm.

A cell saves its state and its job is requeued, by submitit, on SIGUSR1, on SIGUSR2, which submitit has Slurm send before
the time limit, and on SIGTERM, unless that comes from ``scancel``. Slurm itself requeues the jobs of a node that fails.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from submitit.core.utils import FailedJobError, FailedSubmissionError

from results.escape import counted
from runners.launch import LOOK_EVERY, GridStoppedError, Watched, export_path, failed

ASK_EVERY = (3.0, 60.0)  # seconds between questions to Slurm, which grow with the time that the grid has run


class Launcher(Watched, SlurmLauncher):
    """Submit an array job and wait for it; its tasks call this object."""

    def run_all(self, job_overrides: Sequence[Sequence[str]], first_index: int) -> Sequence[JobReturn | None]:
        jobs = self._submit(job_overrides, first_index)
        array = jobs[0].job_id.partition("_")[0]
        folder = jobs[0].paths.folder.parent
        count = counted(len(jobs), "cell")
        print(
            f"Slurm job {array}: {count}; scancel {array} ends them, output in {folder}/{array}*", flush=True
        )
        try:
            self._wait(jobs, array)
        except SystemExit:
            print(
                f"actbench: job {array} goes on; scancel {array} ends it. When it has ended the same command trains "
                "what is left and reports",
                file=sys.stderr,
            )
            raise
        return [_end(job, overrides) for job, overrides in zip(jobs, job_overrides, strict=True)]

    def _submit(
        self, job_overrides: Sequence[Sequence[str]], first_index: int
    ) -> list[submitit.Job[JobReturn]]:
        export_path()
        settings = dict(self.params)
        folder, requeues = settings.pop("submitit_folder"), settings.pop("max_num_timeout")
        arguments = [
            (list(overrides), "hydra.sweep.dir", index, f"job_id_for_{index}", Singleton.get_state())
            for index, overrides in enumerate(job_overrides, first_index)
        ]
        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=requeues)
            executor.update_parameters(**{f"slurm_{name}": value for name, value in settings.items()})
            return executor.map_array(self, *zip(*arguments, strict=True))
        except (RuntimeError, NameError, AssertionError, FailedJobError, FailedSubmissionError) as error:
            raise ValueError(
                f"hydra/launcher=submitit_slurm: {str(error).strip().partition(chr(10))[0]}"
            ) from error

    def _wait(self, jobs: Sequence[submitit.Job[JobReturn]], array: str) -> None:
        """Return when each job has left a result, or is no longer known to Slurm."""
        start = asked = time.monotonic()
        gone: set[str] = set()
        while waiting := [job for job in jobs if not job.paths.result_pickle.exists()]:
            if self.progress.must_stop:
                subprocess.run(["scancel", array], check=False)
                raise GridStoppedError
            now = time.monotonic()
            if now - asked >= min(max((now - start) / 10, ASK_EVERY[0]), ASK_EVERY[1]):
                known = states(array)
                before, asked = gone, now
                gone = {job.job_id for job in waiting if known is not None and job.job_id not in known}
                if all(job.job_id in before & gone for job in waiting):  # twice, as files may come late
                    return
            time.sleep(LOOK_EVERY)

    def __call__(self, *arguments: Any) -> JobReturn:
        """Run a cell, in a job of its own."""
        for number in (signal.SIGTERM, signal.SIGUSR1):  # before the cell trains; then it handles them itself
            signal.signal(number, _exit)
        try:
            return super().__call__(*arguments)
        except SystemExit as end:
            by = end.code - 128 if isinstance(end.code, int) else 0
            job = submitit.JobEnvironment().job_id
            canceled = by == signal.SIGTERM and (states(job) or {}).get(job) != "RUNNING"
            if by in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2) and not canceled:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a job gets that is requeued
                signal.raise_signal(signal.SIGUSR2)  # submitit requeues it
            raise


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end(job: submitit.Job[JobReturn], overrides: Sequence[str]) -> JobReturn | None:
    """Return what a job has returned, or the last line of its traceback; None if it was ended before."""
    if not job.paths.result_pickle.exists():
        return None
    try:
        return job.results()[0]
    except FailedJobError as error:
        trace = str(error).partition("\n----------------------\n")[2].partition("\n----------------------")[0]
        reason = trace.strip().rpartition("\n")[2]
        return failed(overrides, f"{reason} ({job.paths.stderr})")


def states(job: str) -> dict[str, str] | None:
    """Return the states of a job and its array's tasks that have not ended, by their ids; None if Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={job}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    return dict(line.split(None, 1) for line in answer.stdout.splitlines())
