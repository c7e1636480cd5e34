"""Augmentation as batched tensor operations on uint8 images, drawn per image.

Each is called with images, on any device, and a generator of the CPU, its only source of randomness: the numbers are drawn
on the CPU and sent to the images, so that a batch has the same bits on every device. ``masks`` planes at the end of each sample are
label maps: they move with the image, and their values are never mixed or changed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from activations.checks import check_bool, check_int, check_list, check_number
from tasks.data.resize import resize_boxes
from tasks.data.transfer import send
from tasks.settings import within

Augment = Callable[[Tensor, torch.Generator], Tensor]

ATTEMPTS = 10  # number of boxes that are tried, as in torchvision


class Drawn(ABC):
    """An augmentation that draws its numbers, a row for each image, before it looks at any pixel.

    So a process that has a part of a batch needs no pixel of the rest.
    """

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.of_batch(images, generator, len(images), slice(None))

    def of_batch(self, images: Tensor, generator: torch.Generator, count: int, rows: slice) -> Tensor:
        """Augment ``images``, which are ``rows`` of a batch of ``count``, as they would be with the others."""
        height, width = images.shape[2:]
        draws = self.draw(count, height, width, generator)
        return self.apply(images, *(send(drawn[rows], images.device) for drawn in draws))

    @abstractmethod
    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return tensors of ``count`` rows on the CPU, for images of a size."""

    @abstractmethod
    def apply(self, images: Tensor, *draws: Tensor) -> Tensor:
        """Augment ``images``, on any device, by their rows of what ``draw`` returns."""


class Compose:
    """Apply one augmentation after the other, in the order of the configuration; null is skipped.

    Examples:
        >>> augment = Compose(crop=CropFlip(padding=2), cutout=None)
        >>> augment(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.Generator()).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(self, **steps: Augment | None) -> None:
        self.steps = {name: step for name, step in steps.items() if step is not None}

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        for name, step in self.steps.items():
            with within(name):
                images = step(images, generator)
        return images

    def of_batch(self, images: Tensor, generator: torch.Generator, count: int, rows: slice) -> Tensor:
        """Augment a part of a batch; as of ``Drawn``.

        Raises:
            TypeError: a step cannot, as it needs the whole batch.
        """
        for name, step in self.steps.items():
            if not isinstance(step, Compose | Drawn):
                raise TypeError(f"{name}: augments whole batches alone")
            with within(name):
                images = step.of_batch(images, generator, count, rows)
        return images


def draws_first(augment: object) -> bool:
    """Return whether ``augment`` can augment a part of a batch (``of_batch``)."""
    if isinstance(augment, Compose):
        return all(map(draws_first, augment.steps.values()))
    return augment is None or isinstance(augment, Drawn)


def check_augment(name: str, augment: object, masks: int) -> None:
    """Raise ValueError unless ``augment`` is None or can be called, and treats ``masks`` planes as label maps."""
    steps: dict[str, object] = {name: augment}
    if isinstance(augment, Compose):
        steps = {f"{name}.{part}": step for part, step in augment.steps.items()}
    for place, step in steps.items():
        if step is not None and not callable(step):
            raise ValueError(f"{place}={step}: must be an augmentation (_target_: ...) or null")
        if (wrong := getattr(step, "masks", masks)) != masks:
            raise ValueError(
                f"{place}.masks={wrong}: must be {masks}, the number of masks in a sample of this task"
            )


class CropFlip(Drawn):
    """Random shift with reflected borders, and random horizontal flip: the usual CIFAR augmentation.

    Equivalent to padding by ``padding`` (reflected), cropping at a random place and flipping with
    probability 1/2, in one gather: rows and columns to read are computed per image, nothing is padded.

    Args:
        padding: maximum shift in pixels, >= 0 and below the image's size.
        flip: whether to flip.

    Shape:
        (N, C, H, W) to the same; any of the planes may be label maps.

    Raises:
        ValueError: a padding as large as the images.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        check_int("padding", padding, minimum=0)
        check_bool("flip", flip)
        self.padding = padding
        self.flip = flip

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the shifts of rows and columns and, if images are flipped, whether each is; (N, 1) all."""
        if self.padding >= min(height, width):
            raise ValueError(f"padding={self.padding}: must be below the images' size, {height} x {width}")
        shift = torch.randint(-self.padding, self.padding + 1, (2, count, 1), generator=generator)
        if not self.flip:
            return shift[0], shift[1]
        return shift[0], shift[1], torch.rand(count, 1, generator=generator) < 0.5

    def apply(self, images: Tensor, *draws: Tensor) -> Tensor:
        height, width = images.shape[2:]
        rows = _reflect(torch.arange(height, device=images.device) + draws[0], height)  # (N, H)
        columns = _reflect(torch.arange(width, device=images.device) + draws[1], width)  # (N, W)
        if self.flip:
            columns = torch.where(draws[2], columns.flip(1), columns)
        return _pick(images, rows, columns)


class Cutout(Drawn):
    """A square of ``fill`` at a random place, cut off at the borders (DeVries, Taylor 2017, arXiv 1708.04552).

    The center is any pixel, so that on average less than a whole square is covered. The paper fills with zeros
    after normalization, which is the mean of the data; here it is a number of 0 .. 255.

    Args:
        size: side of the square in pixels, >= 0; 0 is off.
        fill: one number, or one per plane.
        masks: number of planes at the end that are not changed.

    Shape:
        (N, C, H, W) to the same.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, size: int = 8, fill: int | Sequence[int] = 128, masks: int = 0) -> None:
        check_int("size", size, minimum=0)
        fill = [fill] if isinstance(fill, int) else fill
        check_list("fill", fill, integers=True, minimum=0, maximum=255)
        check_int("masks", masks, minimum=0)
        self.size = size
        self.fill = torch.tensor(list(fill), dtype=torch.uint8).view(-1, 1, 1)
        self.masks = masks

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the row and the column of each center, (N, 1) both; nothing if it is off."""
        if self.size == 0:
            return ()
        rows, columns = (torch.randint(side, (count, 1), generator=generator) for side in (height, width))
        return rows, columns

    def apply(self, images: Tensor, *draws: Tensor) -> Tensor:
        if self.size == 0:
            return images
        planes = images.shape[1] - self.masks
        if len(self.fill) not in (1, planes):
            raise ValueError(f"fill: has {len(self.fill)} numbers, must have 1 or {planes}, one per plane")
        inside = [
            _between(center - self.size // 2, self.size, side)
            for center, side in zip(draws, images.shape[2:], strict=True)
        ]
        self.fill = send(self.fill, images.device)
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (N, 1, H, W)
        pictures, masks = images.split([planes, self.masks], dim=1)
        pictures = torch.where(hole, self.fill, pictures)
        return torch.cat([pictures, masks], dim=1) if self.masks else pictures


class RandomResizedCrop(Drawn):
    """A box of random area, aspect ratio and place, resized to ``size`` and flipped with probability 1/2.

    The augmentation of Inception (Szegedy et al. 2014, arXiv 1409.4842, section 6), with boxes drawn as torchvision
    draws them: up to ten attempts with area uniform in ``scale`` and ratio log-uniform in ``ratio``, then the
    largest centered box of a legal ratio. Bilinear and, where the box is larger than ``size``, antialiased.

    Args:
        size: of the output, a number or [height, width]; at most that of the images.
        scale: minimum and maximum share of the area, in (0, 1].
        ratio: minimum and maximum width / height, > 0.
        flip: whether to flip.
        masks: number of planes at the end that are sampled (nearest neighbor), not interpolated.

    Shape:
        (N, C, H, W) to (N, C, *size).

    Raises:
        ValueError: a value outside its range, or images smaller than ``size``.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = True,
        masks: int = 0,
    ) -> None:
        self.size = _pair("size", size)
        check_list("scale", scale, length=2, above=0, maximum=1)
        check_list("ratio", ratio, length=2, above=0)
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if low > high:
                raise ValueError(f"{name}=[{low}, {high}]: the first number must be <= the second")
        check_bool("flip", flip)
        check_int("masks", masks, minimum=0)
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.flip = flip
        self.masks = masks

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the boxes, (N, 4), and which images are flipped, (N, 1)."""
        _check_size(self.size, height, width)
        boxes = self.boxes(count, height, width, generator)
        return boxes, (torch.rand(count, 1, generator=generator) < 0.5) & self.flip

    def apply(self, images: Tensor, *draws: Tensor) -> Tensor:
        boxes, flips = draws
        if images.is_cpu:  # one image at a time, as each has its own box
            pixels = images.contiguous(memory_format=torch.channels_last)
            out = images.new_empty(len(images), images.shape[1], *self.size)
            chosen = zip(flips[:, 0].tolist(), boxes.tolist(), strict=True)
            for i, (flipped, (top, left, h, w)) in enumerate(chosen):
                box = pixels[i : i + 1, :, top : top + h, left : left + w]
                one = F.interpolate(box, self.size, mode="bilinear", antialias=True)
                out[i : i + 1] = one.flip(3) if flipped else one
        else:
            out = resize_boxes(images, boxes, self.size, flips)
        if self.masks:
            top, left, h, w = boxes.T[:, :, None]
            rows, columns = (
                start + _nearest(sides, target)
                for start, sides, target in zip((top, left), (h, w), self.size, strict=True)
            )
            columns = torch.where(flips, columns.flip(1), columns)
            out[:, -self.masks :] = _pick(images[:, -self.masks :], rows, columns)
        return out

    def boxes(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Return (n, 4): top, left, height and width of each box."""
        draws = torch.rand(4, ATTEMPTS, n, dtype=torch.double, generator=generator)
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[0]) * height * width
        low, high = (math.log(ratio) for ratio in self.ratio)
        ratio = (low + (high - low) * draws[1]).exp()
        h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        fits = (h >= 1) & (h <= height) & (w >= 1) & (w <= width)
        # The last attempt, with index ATTEMPTS, always fits.
        legal = min(max(width / height, self.ratio[0]), self.ratio[1])
        last = torch.tensor([min(height, round(width / legal)), min(width, round(height * legal))])
        # the first attempt that fits
        first = torch.cat([fits, torch.ones(1, n, dtype=torch.bool)]).int().argmax(0)
        pick = first.clamp_max(ATTEMPTS - 1)[None]
        failed = first == ATTEMPTS
        sides = torch.stack([h.gather(0, pick)[0], w.gather(0, pick)[0]])
        sides = torch.where(failed, last[:, None].double(), sides)
        room = torch.tensor([[height], [width]]) - sides
        anywhere = (draws[2:].gather(1, pick.expand(2, 1, n))[:, 0] * (room + 1)).floor()
        corner = torch.where(failed, (room / 2).floor(), anywhere)
        return torch.cat([corner, sides]).T.long()


class CenterCrop:
    """The middle of each image, resized to ``size``, for validation and test where training crops at random.

    The box has the aspect ratio of ``size`` and spans ``share`` of the largest such box. The usual share is
    224 / 256 (arXiv 1512.03385 and others resize to 256 and cut 224 out).

    Args:
        size: of the output, a number or [height, width]; at most that of the images.
        share: of the largest box, in (0, 1].
        masks: number of planes at the end that are sampled (nearest neighbor), not interpolated.

    Shape:
        (N, C, H, W) to (N, C, *size).

    Raises:
        ValueError: a value outside its range, or images smaller than ``size``.
    """

    def __init__(self, size: int | Sequence[int], share: float = 0.875, masks: int = 0) -> None:
        self.size = _pair("size", size)
        check_number("share", share, above=0, maximum=1)
        check_int("masks", masks, minimum=0)
        self.share = share
        self.masks = masks

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        _check_size(self.size, height, width)
        zoom = self.share * min(height / self.size[0], width / self.size[1])
        h, w = (max(1, round(zoom * side)) for side in self.size)
        top, left = (height - h) // 2, (width - w) // 2
        box = images[:, :, top : top + h, left : left + w]
        if (h, w) == self.size:
            return box.contiguous()
        if images.is_cpu:
            pixels = box.contiguous(memory_format=torch.channels_last)
            out = F.interpolate(pixels, self.size, mode="bilinear", antialias=True).contiguous()
        else:
            whole = send(torch.tensor([[0, 0, h, w]]), images.device)
            out = resize_boxes(box, whole, self.size)
        if self.masks:
            rows, columns = (
                _nearest(torch.full((1, 1), side, device=images.device), to)
                for side, to in zip((h, w), self.size, strict=True)
            )
            out[:, -self.masks :] = _pick(box[:, -self.masks :], rows, columns)
        return out


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at ``rows`` (N or 1, H') and ``columns`` (N or 1, W') of each image, in all planes."""
    n, planes, _, width = images.shape
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(len(rows), 1, -1).expand(n, planes, -1)
    picked = images.reshape(n, planes, -1).gather(2, pixels)
    return picked.view(n, planes, rows.shape[1], columns.shape[1])


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror positions outside 0 .. size - 1 back in; the border itself is not repeated."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _nearest(sides: Tensor, size: int) -> Tensor:
    """Return (N, size): for each of ``sides`` (N, 1), the integers below it that are nearest to ``size`` even steps."""
    return (2 * torch.arange(size, device=sides.device) + 1) * sides // (2 * size)


def _between(start: Tensor, length: int, size: int) -> Tensor:
    """Return (N, size): which of 0 .. size - 1 lie in ``start`` (N, 1) .. ``start + length - 1``."""
    position = torch.arange(size, device=start.device)
    return (position >= start) & (position < start + length)


def _pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width."""
    if isinstance(size, Sequence):
        check_list(name, size, length=2, integers=True, minimum=1)
        return (int(size[0]), int(size[1]))
    check_int(name, size, minimum=1)
    return (size, size)


def _check_size(size: tuple[int, int], height: int, width: int) -> None:
    if height < size[0] or width < size[1]:
        raise ValueError(
            f"size={size[0]} x {size[1]}: must be at most that of the images, {height} x {width}; a larger data.stored "
            "or data.size, where the task has it, makes them larger"
        )
