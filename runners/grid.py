"""What a multirun does besides its cells: at its end, the study's report."""

from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

ACTIVATIONS = Path(__file__).resolve().parent.parent / "conf" / "activation"

CHECK = "runners.check.Check"


class ReportAfterGrid(Callback):
    """Hydra callback that remembers which study a multirun writes to; run.py reports on it at the end.

    Hydra's own end-of-multirun hook is not called when a cell has failed, and then the report matters most.
    """

    study_folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in the process that launches the cells.

        Raises:
            ValueError: a grid over studies or output folders.
        """
        for override in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
            if override.is_sweep_override() and override.get_key_element() in ("study", "outputs"):
                raise ValueError(f"{override.input_line}: the cells of a grid belong to one study")
        if trains(config.runner):
            ReportAfterGrid.study_folder = Path(config.outputs) / str(config.study)

    @staticmethod
    def report() -> None:
        """Write the report, if this process launched a grid."""
        if ReportAfterGrid.study_folder is not None:
            from results.report import report  # with pandas and matplotlib behind it

            report(ReportAfterGrid.study_folder)


def trains(runner: DictConfig) -> bool:
    """Whether a runner makes cells, which ``runner=check`` does not."""
    return bool(runner._target_ != CHECK)


def own_class(target: str, choice: str) -> str | None:
    """The name of the class ``target`` if it is not the one that the configuration ``choice`` is for."""
    usual = OmegaConf.select(OmegaConf.load(ACTIVATIONS / f"{choice}.yaml"), "_target_")
    return None if usual in (None, target) else target.rpartition(".")[2]
