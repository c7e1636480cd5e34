"""Training rules, sizes and refusals of all units."""

import math
from collections.abc import Callable

import pytest
import torch
from conftest import ACTIVATIONS, make_factory, make_task

from runners.code import ACTIVATIONS as PACKAGE
from runners.code import code_files
from runners.optim import parameter_groups
from runners.train import build_network

C = 6


# The parameters that weight decay touches; it must leave all others alone.
DECAYED: dict[str, set[str]] = {
    "dyrelu": {"fc1.weight", "fc2.weight"},
    "dyrelu_c": {"fc1.weight", "fc2.weight", "attention"},
    "pwlu": set(),
    "npwlu": set(),
    "frelu": {"conv.weight"},
    "frelu_light": {"conv1.weight", "conv2.weight"},
    "dwconv_relu": {"conv.weight"},
    "ditac": set(),
    "gct": {"alpha", "gamma"},
    "se_relu": {"fc1.weight", "fc2.weight"},
    "pelu": set(),
    "maxout": {"weight"},
    "acon_c": set(),
    "meta_acon": {"fc1.weight", "fc2.weight"},
    "pau": set(),
    "apl": set(),
    "srelu": set(),
    "snake": set(),
    "prelu": set(),
    "swish_beta": set(),
    "fourier": set(),
    "group_rational": set(),
    "hermite": set(),
    "poly_norm": set(),
    "poly_relu": set(),
    "smu": set(),
    "staf": set(),
    "star_relu": set(),
    "xielu": set(),
}


# The same rule under another name.
DECAYED |= {
    "dyrelu_a": DECAYED["dyrelu"],
    "gct_before": DECAYED["gct"],
    "gct_l1": DECAYED["gct"],
    **dict.fromkeys(("ditac_ge", "ditac_inf", "ditac_leaky", "ditac_pm3"), DECAYED["ditac"]),
    "pelu_channel": DECAYED["pelu"],
    "prelu_shared": DECAYED["prelu"],
    "pwlu_channel": DECAYED["pwlu"],
    "star_relu_one": DECAYED["star_relu"],
    "swish_beta_channel": DECAYED["swish_beta"],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_weight_decay_touches_what_the_paper_says(name: str) -> None:
    unit = make_factory(name)(C)
    if not [*unit.parameters()]:
        return
    assert name in DECAYED, "state in DECAYED what weight decay touches"
    decayed = {id(p) for p in parameter_groups(unit, 0.1)[0]["params"]}
    assert {n for n, p in unit.named_parameters() if id(p) in decayed} == DECAYED[name]


def test_a_base_inside_gct_keeps_its_own_rules() -> None:
    factory = make_factory("gct", "activation.base._target_=activations.prelu.PReLU")
    network = build_network(factory, make_task("digits"), 0)
    decayed = {id(p) for p in parameter_groups(network, 0.1)[0]["params"]}
    unit = network.features[2]
    assert {n for n, p in unit.named_parameters() if id(p) in decayed} == {"alpha", "gamma"}


def small(c: int, r: int, least: int) -> int:
    return max(c // r, least)


# Number of parameters by channels.
PARAMETERS: dict[str, Callable[[int], int]] = {
    "acon_c": lambda c: 3 * c,
    "apl": lambda c: 10 * c,
    "ditac": lambda c: 9,
    "ditac_inf": lambda c: 11,
    "dwconv_relu": lambda c: 9 * c + c + 2 * c,
    "dyrelu_a": lambda c: (c + 1) * small(c, 8, 4) + (small(c, 8, 4) + 1) * 4,
    "dyrelu": lambda c: (c + 1) * small(c, 8, 4) + (small(c, 8, 4) + 1) * 4 * c,
    "dyrelu_c": lambda c: (c + 1) * small(c, 8, 4) + (small(c, 8, 4) + 1) * 4 * c + c,
    "frelu": lambda c: 9 * c + c + 2 * c,
    "frelu_light": lambda c: 2 * (3 * c + 2 * c),
    "gct": lambda c: 3 * c,
    "maxout": lambda c: 2 * c * c + 2 * c,
    "meta_acon": lambda c: 2 * c + (c + 1) * small(c, 16, 16) + (small(c, 16, 16) + 1) * c,
    "npwlu": lambda c: 4 + 4 + 4,
    "pau": lambda c: 10,
    "pelu": lambda c: 2,
    "pelu_channel": lambda c: 2 * c,
    "prelu": lambda c: c,
    "prelu_shared": lambda c: 1,
    "pwlu": lambda c: 16 + 5,
    "pwlu_channel": lambda c: (16 + 5) * c,
    "se_relu": lambda c: (c + 1) * small(c, 16, 4) + (small(c, 16, 4) + 1) * c,
    "snake": lambda c: 1,
    "srelu": lambda c: 4 * c,
    "swish_beta": lambda c: 1,
    "swish_beta_channel": lambda c: c,
    "relu": lambda c: 0,
    "fourier": lambda c: 7 + 6 + 6,
    "group_rational": lambda c: 6 + 4 * min(8, c),
    "hermite": lambda c: 4,
    "poly_norm": lambda c: 3 + 1,
    "poly_relu": lambda c: 3 + 1,
    "smu": lambda c: 1,
    "staf": lambda c: 3 * 5,
    "star_relu": lambda c: 2,
    "star_relu_one": lambda c: 2,
    "xielu": lambda c: 2,
}


# The same unit under another name.
PARAMETERS |= {
    "gct_before": PARAMETERS["gct"],
    "gct_l1": PARAMETERS["gct"],
    **dict.fromkeys(("ditac_ge", "ditac_leaky", "ditac_pm3"), PARAMETERS["ditac"]),
    **dict.fromkeys(
        (
            *("celu", "elu", "gelu", "hard_swish", "leaky_relu", "mish", "selu", "sigmoid", "softplus"),
            *("sine", "swish", "tanh", "tanh_exp", "finer", "gaussian", "golu", "leaky_relu_squared"),
            *("logish", "relu_squared", "serf", "sugar"),
        ),
        PARAMETERS["relu"],
    ),
}


@pytest.mark.parametrize("channels", [3, 64, 200])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_number_of_parameters(name: str, channels: int) -> None:
    assert name in PARAMETERS, "state the formula in PARAMETERS"
    unit = make_factory(name)(channels)
    assert sum(p.numel() for p in unit.parameters()) == PARAMETERS[name](channels)


@pytest.mark.parametrize(
    "override",
    [
        "dyrelu form=D",
        "dyrelu pieces=0",
        "dyrelu init_a=[1]",
        "dyrelu init_b=[nan,0]",
        "dyrelu temperature=0",
        "dyrelu reduction=0",
        "pwlu segments=0",
        "pwlu segments=2.5",
        "pwlu fix_init=-1",
        "pwlu statistics=pooled",
        "pwlu per_channel=no_",
        "npwlu reach=0",
        "frelu kernel_size=4",
        "frelu dims=3",
        "frelu_light dims=1",
        "ditac a=2 b=2",
        "ditac form=elu",
        "ditac cells=1",
        "ditac table_size=1",
        "ditac lambda_reg=-1",
        "ditac_inf interpolation=nearest",
        "gct mode=l3",
        "gct eps=0",
        "gct after_relu=true",
        "gct base=relu",
        "gct_l1 after_relu=true position=before",
        "gct base._target_=torch.nn.ReLU",
        "gct base._target_=torch.nn.Identity",
        "dyrelu init_a=3",
        "softplus beta=0",
        "celu alpha=0",
        "gelu approximate=tan",
        "pwlu momentum=1",
        "pelu minimum=0",
        "maxout pieces=1",
        "maxout grouping=none",
        "apl l2=-1",
        "srelu t_right=0",
        "snake a=0",
        "sine omega=nan",
        "se_relu reduction=0",
        "xielu a_p=0",
        "xielu a_n=0.5",
        "gaussian scale=0",
        "finer omega=0",
        "finer detach=no_",
        "poly_norm eps=0",
        "group_rational groups=0",
        "group_rational init=gelu",
        "hermite degree=0",
        "hermite degree=40",
        "fourier degree=14",
        "staf tau=14",
        "sugar alpha=nan",
        "star_relu bias=inf",
        "smu m=x",
        "leaky_relu_squared negative_slope=nan",
    ],
)
def test_refuses_bad_hyper_parameters(override: str) -> None:
    name, value = override.split(" ", 1)
    key = value.partition("=")[0].partition(".")[0]
    overrides = [f"activation.{part}" for part in value.split()]
    with pytest.raises(ValueError, match=key):
        make_factory(name, *overrides)(C)


def test_no_kernel_is_part_of_the_code_of_relu() -> None:
    """Whose hash would otherwise change, and whose cells would not resume, with every edit of a kernel."""
    files = code_files(["activations.torch_nn.ReLU"], PACKAGE)
    assert files is not None
    assert set(files) == {"activations", *(f"activations.{name}" for name in ("base", "checks", "torch_nn"))}
    prelu = code_files(["activations.prelu.PReLU"], PACKAGE)
    assert prelu is not None
    assert "activations.kernels.library" in prelu


@pytest.mark.parametrize(
    "name", ["pwlu", "pwlu_channel", "npwlu", "npwlu activation.per_channel=true", "apl", "srelu"]
)
def test_occupancy_is_the_share_of_inputs_between_kinks(name: str) -> None:
    """The kinks are where the slope of the unit's own curve changes, on a grid finer than any of its pieces."""
    torch.manual_seed(0)
    unit = make_factory(*name.split())(C, channel_dim=-1).double()
    for parameter in unit.parameters():  # so that all pieces have slopes of their own
        parameter.data += 0.1 * torch.rand_like(parameter)
    x = 3 * torch.randn(7, 11, C, dtype=torch.float64)
    x[0, 0, 0], x[1, 1, 1] = math.nan, math.inf
    with torch.no_grad():
        found = unit.diagnostics(x)["occupancy"]
        grid = torch.linspace(-12, 12, 24001, dtype=torch.float64)
        bends = unit.curves(grid).diff().diff(dim=1).abs() > 1e-9
    channels = x.reshape(-1, C).T if len(found) == C else x.reshape(1, -1)
    for shares, bend, values in zip(found, bends, channels, strict=True):
        kinks = grid[1:-1][bend]
        kinks = kinks[torch.cat([torch.tensor([True]), kinks.diff() > 2e-3])]  # one falls between two points
        assert len(shares) == len(kinks) + 1
        finite = values[values.isfinite()]
        counts = torch.bucketize(finite, kinks).bincount(minlength=len(shares))
        torch.testing.assert_close(shares, counts / len(finite), atol=0.02, rtol=0, check_dtype=False)
