"""``hydra/launcher=joblib``: the cells of a grid in processes of this machine."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from joblib.externals.loky.process_executor import TerminatedWorkerError

from runners.launch import Watched


class Launcher(Watched, JoblibLauncher):
    """As many cells at a time as there are cores, each with its share of them."""

    def run_all(self, job_overrides: Sequence[Sequence[str]], first_index: int) -> Sequence[JobReturn | None]:
        try:
            return super().run_all(job_overrides, first_index)
        except TerminatedWorkerError:  # for which joblib ends the others
            return [None] * len(job_overrides)
