"""Occupancy of the pieces of piecewise units: which of them a site's inputs use."""

import torch
from torch import Tensor


def occupancy(x: Tensor, knots: Tensor, channel_dim: int) -> Tensor:
    """Return the share of the finite elements of ``x`` in each piece, (units, K + 1), the free tails first and last.

    Args:
        x: inputs of a unit.
        knots: (units, K) in ascending order, units being 1 or the number of channels; a knot belongs to the piece to the
            right.
        channel_dim: the dimension of ``x`` that holds the channels.

    Examples:
        >>> import torch
        >>> x = torch.tensor([[-2.0], [0.0], [0.5], [9.0]])
        >>> occupancy(x, torch.tensor([[-1.0, 0.0, 1.0]]), 1)
        tensor([[0.2500, 0.0000, 0.5000, 0.2500]])
    """
    units, k = knots.shape
    values = x.detach().movedim(channel_dim, 0).reshape(units, -1).to(knots.dtype)
    piece = torch.searchsorted(knots.detach().contiguous(), values.contiguous(), right=True)
    counts = torch.zeros(units, k + 1, dtype=knots.dtype, device=knots.device)
    counts.scatter_add_(1, piece, values.isfinite().to(knots.dtype))
    return counts / counts.sum(1, keepdim=True).clamp_min(1)
