"""Regression targets in closed form."""

import torch
from torch import Tensor

SINES2D_FREQUENCIES = torch.tensor(
    [[9, -7], [-9, 11], [3, 13], [9, 9], [13, 5], [3, 19]], dtype=torch.float32
)
SINES2D_WEIGHTS = torch.tensor([0.4, 0.1, 0.15, 0.15, 0.1, 0.1])


def sines2d(x: Tensor) -> Tensor:
    """f(x) = sum_i w_i sin(A_i . x): the regression target of DiTAC's figure 1 (arXiv 2407.07564).

    Shape:
        (N, 2) to (N, 1).
    """
    return ((x @ SINES2D_FREQUENCIES.to(x).T).sin() @ SINES2D_WEIGHTS.to(x))[:, None]
