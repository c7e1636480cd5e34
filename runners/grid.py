"""What a multirun does besides its cells: at its end, the study's report."""

from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class ReportAfterGrid(Callback):
    """Hydra callback that remembers which study a multirun writes to; run.py reports on it at the end.

    Hydra's own end-of-multirun hook is not called when a cell has failed, and then the report matters most.
    """

    study_folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in the process that launches the cells."""
        ReportAfterGrid.study_folder = Path(config.outputs) / str(config.study)
