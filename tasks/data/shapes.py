"""Generated scenes of overlapping textured objects with exact masks.

Only operations that IEEE 754 rounds exactly are used (+, -, *, /, square root, floor), element by element, on the uniform
numbers of numpy's PCG64: the scenes are the same bytes on every machine, and need no download.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from activations.checks import check_int
from tasks.data.hashing import content_hash
from tasks.data.sets import MaskSet
from tasks.data.store import Memory

Array = np.ndarray

RULE_SEED = 20_260_102  # part of the definition, like every number below
SPLITS = ("train", "val", "test")
MAX_OBJECTS = 5
MIN_OBJECTS = 3
SURFACE = 11  # random numbers for the color and texture of a surface
OBJECT = 6 + SURFACE  # random numbers for an object
CHUNK = 16  # number of scenes computed at a time, so that they stay in the processor's cache

# in rotated coordinates, scaled so that all have about the disc's area
OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.886,
    "triangle": lambda u, v: _triangle(u, v, 1.555),
    "ring": lambda u, v: (u * u + v * v <= 1.5) & (u * u + v * v >= 0.5),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.4) & (np.maximum(abs(u), abs(v)) <= 1.18),
}
CLASSES = ("background", *OUTLINES)


def shapes(*, train: int, val: int, test: int, size: int = 48) -> MaskSet:
    """Generate scenes of three to five objects on a background, which differ in their outline alone.

    Five outlines of random place, size, aspect and angle occlude each other and are cut by the border. Colors and
    textures (plain, stripes, checks, dots, zigzag) are drawn in the same way for every surface, background included;
    the light is uneven, and there is noise. Scene i of a split does not depend on the number of scenes.

    Args:
        train, val, test: numbers of scenes, >= 1.
        size: height and width in pixels, >= 16.

    Raises:
        ValueError: a number outside its range.

    Examples:
        >>> data = shapes(train=2, val=1, test=1, size=16)
        >>> data.store.shape, data.classes
        ((4, 16, 16), ('background', 'disc', 'square', 'triangle', 'ring', 'cross'))
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    for split, count in counts.items():
        check_int(split, count, minimum=1)
    check_int("size", size, minimum=16)
    samples = np.concatenate([scenes(split, count, size) for split, count in counts.items()])
    parts = torch.arange(len(samples)).split(list(counts.values()))
    return MaskSet(
        store=Memory(torch.from_numpy(samples)),
        **dict(zip(SPLITS, parts, strict=True)),
        classes=CLASSES,
        fingerprint=content_hash(samples),
    )


@lru_cache(maxsize=3)
def scenes(split: str, count: int, size: int) -> Array:
    """Return the first ``count`` scenes of ``split``: (count, 4, size, size) uint8, red, green, blue and class."""
    samples = np.empty((count, 4, size, size), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        seeds = [(RULE_SEED, SPLITS.index(split), scene) for scene in range(start, stop)]
        draws = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        numbers = np.stack([rng.random(7 + SURFACE + MAX_OBJECTS * OBJECT) for rng in draws])
        noise = np.stack([rng.random((3, size, size)) for rng in draws])
        samples[start:stop] = _scenes(numbers.T[:, :, None, None], noise)
    return samples


def _scenes(numbers: Array, noise: Array) -> Array:
    """Return the scenes that ``numbers`` (K, n, 1, 1) in [0, 1) describe, with ``noise`` (n, 3, H, W)."""
    n, _, size, _ = noise.shape
    y, x = np.divide(np.mgrid[:size, :size] + 0.5, size) - 0.5  # (H, W) in [-1/2, 1/2]
    (count, fall_x, fall_y, grain), mean = numbers[:4], 70 + 110 * numbers[4:7]
    count = MIN_OBJECTS + np.floor((1 + MAX_OBJECTS - MIN_OBJECTS) * count)
    top = np.zeros((n, size, size), dtype=int)  # the visible surface, 0 is the background
    labels, looks = [np.zeros((n, 1, 1), dtype=np.uint8)], [numbers[7:][:SURFACE]]
    for k in range(MAX_OBJECTS):
        drawn = numbers[7 + SURFACE + k * OBJECT :][:OBJECT]
        label, inside = _object(drawn[:6], x, y)
        top = np.where(inside & (k < count), k + 1, top)
        labels.append(label)
        looks.append(drawn[6:])
    seen = (np.arange(n)[:, None, None], top)
    mask = np.concatenate(labels, axis=1)[..., 0][seen]
    image = _surface(np.concatenate(looks, axis=2)[..., 0][:, *seen], mean, x, y)
    light = 1 + 0.9 * ((fall_x - 0.5) * x + (fall_y - 0.5) * y)
    image = image * light[:, None] + (5 + 25 * grain[:, None]) * (noise - 0.5)
    return np.concatenate((np.floor(image.clip(0, 255) + 0.5).astype(np.uint8), mask[:, None]), axis=1)


def _object(drawn: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return class (n, 1, 1) and pixels (n, H, W) of an object."""
    label = 1 + np.floor(len(OUTLINES) * drawn[0]).astype(np.uint8)
    radius, aspect = 0.12 + 0.12 * drawn[3], 0.8 + 0.45 * drawn[4]
    u, v = _turned(x - (drawn[1] - 0.5), y - (drawn[2] - 0.5), drawn[5])
    u, v = u / (radius * aspect), v * aspect / radius
    inside = np.zeros(u.shape, dtype=bool)
    for number, outline in enumerate(OUTLINES.values(), 1):
        those = (label == number).squeeze((1, 2))
        inside[those] = outline(u[those], v[those])
    return label, inside


def _surface(drawn: Array, mean: Array, x: Array, y: Array) -> Array:
    """Return (n, 3, H, W): two colors near the scene's mean color, mixed by a texture."""
    p, q = _turned(x, y, drawn[0])
    period = 0.07 + 0.15 * drawn[1]
    p, q = p / period + drawn[2], q / period + drawn[3]
    row, column = np.floor(p), np.floor(q)
    dot = (p - row - 0.5) * (p - row - 0.5) + (q - column - 0.5) * (q - column - 0.5)
    textures = (
        np.zeros_like(p),
        _wave(p),
        abs(row + column) % 2,
        (dot < 0.1) * 1.0,
        _wave(p + 0.8 * _wave(q)),
    )
    kind = np.floor(len(textures) * drawn[4]).astype(int)
    texture = np.choose(kind, textures)[:, None]
    one = (mean + 180 * (drawn[5:8] - 0.5)).swapaxes(0, 1)
    two = one + 70 * (drawn[8:11].swapaxes(0, 1) - 0.5)
    return one + texture * (two - one)


def _turned(x: Array, y: Array, share: Array) -> tuple[Array, Array]:
    """Rotate coordinates without sine and cosine: t = tan(angle / 2) is a number in [-1, 1) on each side."""
    side = np.where(share < 0.5, 1.0, -1.0)
    t = 4 * (share - 0.25 - 0.5 * (share >= 0.5))
    cos, sin = side * (1 - t * t) / (1 + t * t), side * 2 * t / (1 + t * t)
    return cos * x + sin * y, cos * y - sin * x


def _triangle(u: Array, v: Array, radius: float) -> Array:
    """Return whether points are in an equilateral triangle with corners at ``radius`` from its center."""
    return (v >= -0.5 * radius) & (np.sqrt(3.0) * abs(u) + v <= radius)


def _wave(z: Array) -> Array:
    """Return a triangle wave of period 1 that is 0 at integers and 1 halfway between them."""
    return 1 - abs(2 * (z - np.floor(z)) - 1)
