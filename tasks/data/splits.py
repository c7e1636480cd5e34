"""Splits by a fixed rule: which sample is held out, or in which fold, depends on the labels alone, never on a run's seed."""

import torch
from torch import Tensor

RULE_SEED = 20_260_101  # part of the rule; changing it changes every published split


def stratified(labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split positions into (rest, chosen), each class in proportion; both are sorted.

    Every class is put in a fixed random order, and the orders are merged evenly: the i-th of n members of a
    class stands at (i + 1/2) / n. The chosen are the first ``size``, so a smaller choice is part of a larger one.

    Args:
        labels: (N,) integers.
        size: number of samples to choose.

    Raises:
        ValueError: ``size`` outside 1 .. N - 1.

    Examples:
        >>> rest, chosen = stratified(torch.tensor([0, 0, 0, 0, 1, 1]), 3)
        >>> len(rest), (chosen < 4).sum().item()
        (3, 2)
    """
    if not 0 < size < len(labels):
        raise ValueError(
            f"cannot choose {size} of {len(labels)} samples: must be from 1 to {len(labels) - 1}"
        )
    chosen = _merged(labels)[:size]
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().squeeze(1), chosen.sort().values


def hold_out(index: Tensor, labels: Tensor, share: float, name: str) -> tuple[Tensor, Tensor]:
    """Split ``index`` into (rest, chosen), each of the labels in proportion.

    Args:
        index: (n,) positions.
        labels: (N,) of all samples.
        share: of ``index`` to choose.
        name: the setting that ``share`` comes from.

    Raises:
        ValueError: ``share`` leaves one of the two empty.
    """
    try:
        rest, chosen = stratified(labels[index], round(share * len(index)))
    except ValueError as error:
        raise ValueError(f"{name}={share}: {error}") from None
    return index[rest], index[chosen]


def folds(labels: Tensor, count: int) -> list[Tensor]:
    """Split positions into ``count`` sorted parts of nearly equal size, each class in proportion in each of them.

    They are the first, second, ... part of the order that ``stratified`` chooses from.
    """
    return [part.sort().values for part in _merged(labels).tensor_split(count)]


def _merged(labels: Tensor) -> Tensor:
    """Return all positions in the fixed order of the rule."""
    place = torch.empty(len(labels), dtype=torch.double)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(RULE_SEED + label)
        order = torch.randperm(len(members), generator=generator)
        place[members[order]] = (torch.arange(len(members), dtype=torch.double) + 0.5) / len(members)
    return place.argsort(stable=True)
