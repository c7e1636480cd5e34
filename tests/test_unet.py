"""U-Net: sizes that no pooling divides, sites, weights that no activation influences."""

import pytest
import torch
from conftest import make_factory

from tasks.networks.unet import UNet


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (45, 60), (16, 37)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_map_is_as_large_as_the_image(size: tuple[int, int], channels: int) -> None:
    network = UNet(make_factory("relu"), (channels, *size), 5, width=2)
    assert network(torch.randn(2, channels, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_an_activation_for_each_convolution_but_the_last(depth: int) -> None:
    made: list[int] = []

    def act_layer(num_features: int) -> torch.nn.Module:
        made.append(num_features)
        return torch.nn.ReLU()

    network = UNet(act_layer, (3, 16, 16), 4, width=3, depth=depth)
    widths = [3 * 2**level for level in range(depth + 1)]
    assert made == [width for width in (*widths, *widths[-2::-1]) for _ in range(2)]
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == len(made) + 1
    assert len({id(m) for m in network.modules() if isinstance(m, torch.nn.ReLU)}) == len(made)


def test_every_level_sees_the_whole_of_the_image_below_it() -> None:
    """A pixel's score depends on pixels as far away as the deepest level reaches, and on itself by every skip."""
    network = UNet(make_factory("tanh"), (1, 64, 64), 1, width=2).eval()
    x = torch.randn(1, 1, 64, 64, requires_grad=True)
    network(x)[0, 0, 32, 32].backward()
    rows, columns = x.grad[0, 0].nonzero().T
    assert min(rows.min(), columns.min()) < 10
    assert max(rows.max(), columns.max()) > 53


@pytest.mark.parametrize(
    ("hyper", "shape", "message"),
    [
        ({"width": 0}, (3, 16, 16), "^width=0: must be an integer >= 1"),
        ({"depth": 0}, (3, 16, 16), "^depth=0: must be an integer >= 1"),
        ({"depth": 4}, (3, 40, 15), "^depth=4: 4 poolings .* 16 x 16"),
        ({}, (20,), "the network takes images"),
    ],
)
def test_what_it_refuses(hyper: dict, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(make_factory("relu"), shape, 2, **hyper)
