"""``hydra/launcher=ray``: the cells of a grid as tasks of Ray, on this machine or on a cluster."""

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import ray
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray
from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher
from omegaconf import open_dict

from runners.grid import GRACE
from runners.launch import LOOK_EVERY, GridStoppedError, Watched, export_path, failed


class Launcher(Watched, RayLauncher):
    """Send all cells to Ray, which runs as many at a time as it has CPUs, and wait for them."""

    def run_all(self, job_overrides: Sequence[Sequence[str]], first_index: int) -> Sequence[JobReturn | None]:
        export_path()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports on its users
        setup_globals()
        stop = signal.getsignal(signal.SIGTERM)
        start_ray(self.ray_cfg.init)
        signal.signal(signal.SIGTERM, stop)  # not Ray's
        tasks = [self._send(overrides, index) for index, overrides in enumerate(job_overrides, first_index)]
        try:
            self._wait(tasks)
        except BaseException:
            for task in tasks:
                ray.cancel(task, force=False)
            ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
            raise
        return [_end(task, overrides) for task, overrides in zip(tasks, job_overrides, strict=True)]

    def _send(self, overrides: Sequence[str], index: int) -> Any:
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"job_id_for_{index}", index
        return launch_job_on_ray(
            self.hydra_context, self.ray_cfg.remote, config, self.task_function, Singleton.get_state()
        )

    def _wait(self, tasks: Sequence[Any]) -> None:
        waiting = list(tasks)
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            if self.progress.must_stop:
                raise GridStoppedError
            time.sleep(LOOK_EVERY)  # not in ray.wait, which would turn the exit status of a signal into 1


def _end(task: Any, overrides: Sequence[str]) -> JobReturn | None:
    """Return what a task has returned, or the last line of its error; None if its worker was ended before."""
    try:
        end: JobReturn = ray.get(task)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.TaskCancelledError):
        return None
    except ray.exceptions.RayError as error:
        return failed(overrides, str(error).strip().splitlines()[-1])
    return end
