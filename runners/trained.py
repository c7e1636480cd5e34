"""The network of a finished cell as it was trained, made from the files in the cell's folder."""

from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from results.files import BEST_WEIGHTS, CHECKPOINT, CONFIG, RECORD, WEIGHTS
from results.schema import read_record
from runners.factory import validate_act_layer
from runners.train import build_network
from tasks.base import Task
from tasks.networks.build import read_state


def load_trained(folder: Path, *, best: bool = False) -> tuple[Task, nn.Module]:
    """Return the task of a finished cell and its trained network, in eval mode on the CPU.

    The weights are those of ``runner.keep=weights``, or else of the checkpoint, while the cell has one.

    Args:
        folder: the cell's.
        best: whether to load the weights of the best validation epoch instead of the last ones.

    Raises:
        ValueError: no finished cell in this folder, one that kept no weights, or weights of another network than its
            settings make now.
    """
    record = read_record(folder / RECORD)
    if record is None:
        raise ValueError(f"{folder}: no cell in this folder; must be outputs/STUDY/TASK/ACTIVATION/SEED-ID")
    if record["status"] != "ok":
        raise ValueError(f"{folder}: the cell is {record['status']}; must be ok to have a trained network")
    weights = _weights(folder, best)
    config = cast(DictConfig, OmegaConf.load(folder / CONFIG))
    if "weights" in config.network:
        config.network.weights = None  # those that the training started from
    task = instantiate(config.task, network=instantiate(config.network))
    task.split_for(config.seed)
    act_layer = validate_act_layer(instantiate(config.activation), record["activation"])
    network = build_network(act_layer, task, config.seed)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: its weights do not fit the network that its settings make now ({reason})"
        ) from None
    return task, network.eval()


def _weights(folder: Path, best: bool) -> dict[str, Tensor]:
    for name in (BEST_WEIGHTS if best else WEIGHTS, CHECKPOINT):
        if (folder / name).exists():
            state: dict[str, Any] = read_state(folder / name)
            if name != CHECKPOINT:
                return state
            return state["progress"]["best"]["weights"] if best else state["network"]
    raise ValueError(
        f"{folder}: has no weights; runner.keep=weights keeps them, with force=true if the cell is finished"
    )
