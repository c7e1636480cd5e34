"""Choices of a network's initial weights: gain and SIREN's rule, the same for every activation."""

import math
from itertools import product

import pytest
import torch
from conftest import config, make_factory
from hydra.utils import instantiate
from torch import nn

from runners.optim import sites
from runners.plan import planned

OTHERS = (nn.Linear, nn.Conv2d)


def make_network(name: str, *overrides: str, activation: str = "relu") -> nn.Module:
    shape = (3, 16, 16) if name != "mlp_deep" else (2,)
    torch.manual_seed(0)
    factory = instantiate(config("task=digits", f"network={name}", *overrides).network)
    return factory(make_factory(activation), shape, 5)


@pytest.mark.parametrize("name", ["resnet8", "mlp_deep", "unet_small"])
@pytest.mark.parametrize("activation", ["relu", "frelu"])
def test_gain_scales_all_layers_but_the_last_and_no_activation(name: str, activation: str) -> None:
    if name == "mlp_deep" and activation == "frelu":
        activation = "pwlu"
    plain, scaled = (make_network(name, f"network.gain={gain}", activation=activation) for gain in (1, 3))
    units = tuple(sites(plain))
    factors = [
        (module.weight / plain.get_submodule(name).weight).unique()
        for name, module in scaled.named_modules()
        if isinstance(module, OTHERS) and not name.startswith(units)
    ]
    assert [factor.tolist() for factor in factors[-1:]] == [[1.0]]
    for factor in factors[:-1]:
        torch.testing.assert_close(factor, torch.full_like(factor, 3.0))
    for name in units:
        for before, after in zip(
            plain.get_submodule(name).parameters(), scaled.get_submodule(name).parameters(), strict=True
        ):
            assert torch.equal(before, after)


def test_siren_keeps_the_spread_of_every_layer() -> None:
    """The weights give the sines inputs of variance 1 at every depth (arXiv 2006.09661, theorem 1.8), the biases 30^2 / 3n more."""
    network = make_network(
        "mlp_deep", "network.init=siren", "network.hidden=[512,512,512]", activation="sine"
    )
    seen = []
    for unit in sites(network).values():
        unit.register_forward_pre_hook(lambda _, args: seen.append(30 * args[0]))
    x = torch.rand(4096, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        network(x)
    # the first layer has two inputs of variance 1/3, weights in U(-1/2, 1/2) and biases in U(-1/sqrt(2), 1/sqrt(2))
    assert seen[0].std().item() == pytest.approx(30 * math.sqrt(2 / 3 / 12 + 1 / 6), rel=0.1)
    for later in seen[1:]:
        assert later.std().item() == pytest.approx(math.sqrt(1 + 300 / 512), rel=0.05)


def test_bias_of_the_first_layer_has_its_range() -> None:
    network = make_network("mlp_deep", "network.first_bias=4")
    first, second = network.layers[0], network.layers[2]
    assert 3.5 < first.bias.abs().max() <= 4
    assert second.bias.abs().max() <= 1 / math.sqrt(second.in_features)


@pytest.mark.parametrize("setting", ["init=siran", "omega=0", "first_bias=-1", "gain=0"])
def test_refuses(setting: str) -> None:
    with pytest.raises(Exception, match=setting.replace("siran", "'siran'")):
        make_network("mlp_deep", f"network.{setting}")


def test_the_experiment_on_implicit_images_crosses_units_and_initial_weights() -> None:
    specs = [one.cell.spec for one in planned(["experiment=implicit"])]
    cells = {(spec.activation, spec.config["network"]["init"], spec.seed) for spec in specs}
    units = ("relu", "pwlu", "gaussian", "sine", "finer")
    assert cells == set(product(units, ("torch", "siren"), range(3)))
    assert {spec.task for spec in specs} == {"photograph_fit"}
