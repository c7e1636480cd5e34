"""Augmentation, image by image against the textbook way."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from tasks.data.augment import CenterCrop, Compose, CropFlip, Cutout, RandomResizedCrop


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, *shape: int) -> Tensor:
    """Smooth images, every one another."""
    coarse = torch.rand(n, shape[0], 5, 6, generator=generator(9)) * 255
    return F.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 255).to(torch.uint8)


AUGMENTATIONS = {
    "crop and flip": CropFlip(2),
    "cutout": Cutout(4),
    "random resized crop": RandomResizedCrop(12),
    "all": Compose(crop=RandomResizedCrop(16), shift=CropFlip(2), cutout=Cutout(5)),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_draws_come_from_the_generator_alone_and_differ_by_image(name: str) -> None:
    augment = AUGMENTATIONS[name]
    batch = pictures(1, 3, 16, 18).expand(24, -1, -1, -1)
    state = torch.get_rng_state()
    one, two, other = (augment(batch, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({image.numpy().tobytes() for image in one}) > 12


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_threads_change_nothing(name: str) -> None:
    batch = pictures(33, 3, 16, 18)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(AUGMENTATIONS[name](batch, generator()))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_cropping_is_padding_then_slicing() -> None:
    """Against the textbook way, image by image, with the shifts read off by a ramp."""
    batch = torch.arange(8 * 9, dtype=torch.uint8).view(1, 1, 8, 9).expand(200, 2, 8, 9).contiguous()
    out = CropFlip(padding=3, flip=True)(batch, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(batch[:1].float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    candidates = {}
    for dy in range(7):
        for dx in range(7):
            crop = padded[0, 0, dy : dy + 8, dx : dx + 9]
            candidates[crop.numpy().tobytes()] = (dy, dx, False)
            candidates[crop.flip(1).numpy().tobytes()] = (dy, dx, True)
    assert len(candidates) == 98
    draws = [candidates[image[0].numpy().tobytes()] for image in out]  # KeyError: no crop of the padded image
    assert torch.equal(out[:, 0], out[:, 1])
    assert len(set(draws)) > 70  # drawn per image
    assert 0.35 < np.mean([flipped for *_, flipped in draws]) < 0.65


def test_no_augmentation_of_a_size_zero() -> None:
    batch = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    assert torch.equal(CropFlip(0, flip=False)(batch, torch.Generator()), batch)
    with pytest.raises(ValueError, match="below the images' size"):
        CropFlip(6)(batch, torch.Generator())


# random resized crop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "scale"), [(24, (0.08, 1.0)), ((20, 30), (0.9, 1.0)), (40, (0.35, 1.0))])
def test_a_resized_crop_is_torchvisions_of_the_same_box(size: int | tuple[int, int], scale: tuple) -> None:
    from torchvision.transforms.v2.functional import resized_crop

    crop = RandomResizedCrop(size, scale)
    batch = pictures(60, 3, 40, 48)
    out = crop(batch, generator(3))
    boxes = crop.boxes(60, 40, 48, generator(3))
    flipped = []
    for image, box, found in zip(batch, boxes.tolist(), out, strict=True):
        expected = resized_crop(image, *box, list(crop.size), antialias=True)
        flipped.append(not torch.equal(found, expected))
        assert torch.equal(found, expected.flip(2) if flipped[-1] else expected)
    assert 15 < sum(flipped) < 45
    assert torch.equal(
        RandomResizedCrop(size, scale, flip=False)(batch, generator(3))[0],
        resized_crop(batch[0], *boxes[0], list(crop.size)),
    )


@pytest.mark.parametrize("shape", [(160, 160), (180, 240)])
def test_boxes_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop as Theirs

    scale, ratio = (0.2, 0.9), (0.6, 1.4)
    boxes = RandomResizedCrop(32, scale, ratio).boxes(20_000, *shape, generator()).double().T
    top, left, h, w = boxes
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= shape[0]).all()
    assert (left + w <= shape[1]).all()
    share = h * w / (shape[0] * shape[1])
    assert scale[0] - 0.01 < share.min() < scale[0] + 0.01
    assert scale[1] - 0.01 < share.max() < scale[1] + 0.01
    assert ratio[0] - 0.02 < (w / h).min() < ratio[0] + 0.02
    assert ratio[1] - 0.02 < (w / h).max() < ratio[1] + 0.02

    image = torch.zeros(1, *shape)
    torch.manual_seed(0)
    theirs = np.array(
        [Theirs.get_params(image, list(scale), list(ratio)) for _ in range(20_000)], dtype=float
    ).T
    for name, a, b in zip(("top", "left", "height", "width"), boxes.numpy(), theirs, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name
    # positions reach both ends
    assert (top == 0).any()
    assert (top + h == shape[0]).any()


@pytest.mark.parametrize(
    ("ratio", "box"), [((3.0, 4.0), [53, 0, 53, 160]), ((0.2, 0.25), [0, 60, 160, 40]), ((1.0, 1.0), None)]
)
def test_a_box_that_cannot_fit_is_the_largest_in_the_middle(ratio: tuple, box: list | None) -> None:
    boxes = RandomResizedCrop(32, (1.0, 1.0), ratio).boxes(50, 160, 160, generator())
    assert boxes.unique(dim=0).tolist() == [box or [0, 0, 160, 160]]


def test_masks_move_with_their_images_and_keep_their_values() -> None:
    batch = torch.cat([pictures(40, 3, 40, 48), pictures(40, 2, 40, 48) // 50], dim=1)
    crop = RandomResizedCrop((20, 24), masks=2)
    out, boxes = crop(batch, generator(1)), crop.boxes(40, 40, 48, generator(1)).tolist()
    assert torch.equal(out[:, :3], RandomResizedCrop((20, 24))(batch[:, :3], generator(1)))
    for image, (top, left, h, w), found in zip(batch, boxes, out, strict=True):
        box = image[None, :, top : top + h, left : left + w].float()
        colors = F.interpolate(
            image[None, :3, top : top + h, left : left + w], (20, 24), mode="bilinear", antialias=True
        )
        flipped = not torch.equal(found[:3], colors[0])
        expected = F.interpolate(box[:, 3:], (20, 24), mode="nearest-exact")[0].to(torch.uint8)
        assert torch.equal(found[3:], expected.flip(2) if flipped else expected)


# cutout --------------------------------------------------------------------------------------------------------


def test_cutout_fills_a_square_anywhere_and_nothing_else() -> None:
    batch = torch.full((3000, 3, 20, 24), 7, dtype=torch.uint8)
    out = Cutout(6, fill=[1, 2, 3])(batch, generator())
    hole = out[:, 0] != 7
    for plane, value in enumerate((1, 2, 3)):
        assert torch.equal(out[:, plane], torch.where(hole, value, 7).to(torch.uint8))
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        length = side.sum(1)
        assert length.max() == 6
        assert length.min() == 3  # a centre on the border
        assert (side.int().diff(dim=1).abs().sum(1) <= 2).all()  # in one piece
    # centres are uniform: 6 x 6 is whole if they are in the inner 15 x 19 of 20 x 24
    assert (hole.sum((1, 2)) == 36).float().mean().item() == pytest.approx(15 * 19 / (20 * 24), abs=0.03)


def test_cutout_leaves_masks_alone_and_can_be_off() -> None:
    batch = pictures(10, 4, 20, 24)
    out = Cutout(8, fill=0, masks=1)(batch, generator())
    assert torch.equal(out[:, 3], batch[:, 3])
    assert (out[:, :3] == 0).all(1).any()
    draws = generator()
    state = draws.get_state()
    assert torch.equal(Cutout(0)(batch, draws), batch)
    assert torch.equal(draws.get_state(), state)
    with pytest.raises(ValueError, match=r"^fill: has 3 numbers, must have 1 or 1"):
        Cutout(2, fill=[1, 2, 3])(batch[:, :1], draws)


# evaluation ----------------------------------------------------------------------------------------------------


def test_the_evaluation_crop_is_torchvisions() -> None:
    from torchvision.transforms import v2

    batch = pictures(8, 3, 40, 40)
    usual = v2.Compose([v2.CenterCrop(34), v2.Resize(24, antialias=True)])  # 34 = 0.85 * 40
    assert torch.equal(CenterCrop(24, share=0.85)(batch), usual(batch))
    assert torch.equal(CenterCrop(35)(batch), v2.CenterCrop(35)(batch))
    wide = pictures(2, 3, 40, 60)
    assert torch.equal(
        CenterCrop((20, 20), share=1)(wide), v2.Resize(20, antialias=True)(v2.CenterCrop(40)(wide))
    )


def test_the_evaluation_crop_picks_masks() -> None:
    batch = torch.cat([pictures(4, 3, 40, 40), pictures(4, 1, 40, 40) // 50], dim=1)
    out = CenterCrop(24, share=0.85, masks=1)(batch)
    box = batch[:, 3:, 3:37, 3:37].float()
    assert torch.equal(out[:, 3:], F.interpolate(box, (24, 24), mode="nearest-exact").to(torch.uint8))
    assert torch.equal(out[:, :3], CenterCrop(24, share=0.85)(batch[:, :3]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomResizedCrop(0), r"^size=0: must be an integer >= 1"),
        (lambda: RandomResizedCrop([3, 4, 5]), r"^size=\[3, 4, 5\]: must be a list of 2 integers >= 1"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.1)), r"^scale=\[0\.5, 0\.1\]: .* <= the second"),
        (lambda: RandomResizedCrop(8, scale=(0, 1)), r"^scale=\(0, 1\): .*> 0 and <= 1"),
        (lambda: RandomResizedCrop(8, ratio=(-1, 1)), r"^ratio=\(-1, 1\): .*> 0"),
        (lambda: RandomResizedCrop(20)(pictures(1, 3, 16, 30), generator()), "^size=20 x 20: .* 16 x 30"),
        (lambda: CenterCrop(20)(pictures(1, 3, 16, 30)), "^size=20 x 20: .* 16 x 30"),
        (lambda: CenterCrop(20, share=0), r"^share=0: must be a number > 0 and <= 1"),
        (lambda: Cutout(-1), r"^size=-1: must be an integer >= 0"),
        (lambda: Cutout(1, fill=256), r"^fill=\[256\]: .*>= 0 and <= 255"),
    ],
)  # fmt: skip
def test_wrong_values_are_said(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
