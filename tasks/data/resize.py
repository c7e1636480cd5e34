"""Boxes of uint8 images resized in batches, to the bits that torch's antialiased interpolation has on a CPU.

That takes one box at a time, and does not take uint8 on a GPU. Here all images of a batch are resized together on whatever
device they are, by the same steps: taps and weights in float64, weights rounded to integers of 16 bits with as many binary
digits as the largest of them allows, then columns and rows one after the other in integers. No step of it is rounded
differently on another device.
"""

import math

import torch
from torch import Tensor

AT_A_TIME = 64  # number of images, as there are intermediate results of 4 bytes for each value
MOST_DIGITS, LIMIT = 22, 1 << 15  # of the weights


def resize_boxes(images: Tensor, boxes: Tensor, size: tuple[int, int], flips: Tensor | None = None) -> Tensor:
    """Return a box of each image in ``size``, bilinear and antialiased.

    Args:
        images: (N, C, H, W) uint8.
        boxes: (N, 4) or (1, 4) int64, top, left, height and width; on the images' device.
        size: height and width of the result.
        flips: (N, 1) bool, whether to mirror left and right.

    Shape:
        (N, C, *size) uint8.
    """
    parts = []
    for first in range(0, max(len(images), 1), AT_A_TIME):
        rows = slice(first, first + AT_A_TIME)
        mirrored = None if flips is None else flips[rows]
        parts.append(_resize(images[rows], boxes if len(boxes) == 1 else boxes[rows], size, mirrored))
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def _resize(images: Tensor, boxes: Tensor, size: tuple[int, int], flips: Tensor | None) -> Tensor:
    (top, left, height, width), sides = boxes.T[:, :, None], images.shape[2:]
    for dim, start, length in ((3, left, width), (2, top, height)):  # columns first, as torch does
        out, side = size[dim - 2], sides[dim - 2]
        places, weights, digits = _taps(start, length, out, side)
        if dim == 3 and flips is not None:
            places, weights = (torch.where(flips, x.flip(2), x) for x in (places, weights))
        shape, resized = [1, 1, 1], [*images.shape]
        shape[dim - 1] = resized[dim] = out
        total = (1 << (digits - 1)).view(-1, 1, 1, 1)  # a half, so that the shift below rounds
        for place, weight in zip(places, weights, strict=True):
            index = place.view(-1, *shape).expand(resized)
            total = total + images.gather(dim, index).int() * weight.view(-1, *shape)
        images = (total >> digits.view(-1, 1, 1, 1)).clamp(0, 255).byte()
    return images


def _taps(start: Tensor, length: Tensor, out: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels that each of ``out`` pixels is a mean of, their weights, and the weights' binary digits.

    Args:
        start, length: (N, 1) of the boxes in one dimension.
        side: of the images, at least ``length``.

    Returns:
        places (taps, N, out) int64; weights (taps, N, out) int32; digits (N, 1) int32: a weight of 1 is 2^digits.
    """
    scale = length.double() / out
    support = scale.clamp_min(1)
    center = scale * (torch.arange(out, device=length.device) + 0.5)
    first = (center - support + 0.5).long().clamp_min(0)
    count = torch.minimum((center + support + 0.5).long(), length) - first
    tap = torch.arange(2 * math.ceil(max(side / out, 1)) + 1, device=length.device).view(-1, 1, 1)
    inside = tap < count
    weights = (1 - ((tap + first - center + 0.5) * support.reciprocal()).abs()).clamp_min(0)
    weights = weights.where(inside, 0)
    total = torch.zeros_like(center)
    for weight in weights:  # in torch's order
        total = total + weight
    weights = weights / total
    largest = weights.amax((0, 2))[:, None]
    # shifted, as a power need not be exact on a GPU
    powers = (1 << torch.arange(1, MOST_DIGITS + 1, device=length.device)).double()
    digits = ((largest * powers + 0.5).long() < LIMIT).sum(1, keepdim=True)
    rounded = (weights * (1 << digits).double() + 0.5).int()
    # a place beyond the box has a weight of 0
    return start + (first + tap).minimum(length - 1), rounded, digits.int()
