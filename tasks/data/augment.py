"""Augmentation as batched tensor operations on uint8 images, drawn per image."""

import torch
from torch import Tensor

from tasks.base import check_bool, check_whole


class CropFlip:
    """Random shift with reflected borders, and random horizontal flip: the usual CIFAR augmentation.

    Equivalent to padding by ``padding`` (reflected), cropping at a random place and flipping with
    probability 1/2, in one gather: rows and columns to read are computed per image, nothing is padded.

    Args:
        padding: largest shift in pixels, at least 0 and below the image's size.
        flip: whether to flip.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        check_whole("task.augment.padding", padding, 0)
        check_bool("task.augment.flip", flip)
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        if self.padding >= min(height, width):
            raise ValueError(
                f"task.augment.padding={self.padding}: must be below the images' size, {height} x {width}"
            )
        shift = torch.randint(-self.padding, self.padding + 1, (2, n, 1), generator=generator)
        rows = _reflect(torch.arange(height) + shift[0], height)  # (N, H)
        columns = _reflect(torch.arange(width) + shift[1], width)  # (N, W)
        if self.flip:
            flipped = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        pixels = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1).expand(n, channels, -1)
        return images.reshape(n, channels, -1).gather(2, pixels.to(images.device)).view_as(images)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror positions outside 0 .. size - 1 back in; the border itself is not repeated."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
