"""The vision transformer: its blocks by formula, gating at equal parameters, units on tokens."""

import pytest
import torch
from conftest import make_factory
from torch import nn

from activations.torch_nn import ReLU
from runners.optim import sites
from tasks.networks.vit import MLP, Attention, GatedMLP, VisionTransformer

SMALL = {"dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    attention, expected = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    expected.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.out.weight,
            "out_proj.bias": attention.out.bias,
        }
    )
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(x), expected(x, x, x)[0])


def test_gated_mlp_is_its_formula() -> None:
    torch.manual_seed(0)
    mlp, x = GatedMLP(ReLU, 6, 24), torch.randn(2, 5, 6)
    hidden = (x @ mlp.fc1.weight.T + mlp.fc1.bias).clamp_min(0) * (x @ mlp.gate.weight.T + mlp.gate.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


@pytest.mark.parametrize("dim", [24, 64, 100, 192])
def test_both_mlps_have_the_same_number_of_parameters(dim: int) -> None:
    plain, gated = (count(kind(ReLU, dim, 4 * dim)) for kind in (MLP, GatedMLP))
    # a hidden feature more or less, and its biases
    assert abs(plain - gated) <= 3 * dim + 4


@pytest.mark.parametrize("gated", [False, True])
def test_order_of_tokens_matters_by_their_positions_alone(gated: bool) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(ReLU, (3, 16, 16), 5, gated=gated, **SMALL).eval()
    x = torch.randn(2, 3, 16, 16)
    flipped = x.unflatten(2, (2, 8)).flip(2).flatten(2, 3)  # the two rows of patches change places
    with torch.no_grad():
        before = network(flipped)
        assert not torch.allclose(network(x), before, atol=1e-6)
        network.positions.zero_()
        torch.testing.assert_close(network(x), network(flipped))


def test_each_block_has_one_site_on_tokens() -> None:
    network = VisionTransformer(make_factory("gct"), (3, 16, 16), 5, **SMALL)
    units = sites(network)
    assert list(units) == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert {(unit.num_features, unit.channel_dim) for unit in units.values()} == {(96, -1)}
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"patch_size": 5}, "patch_size=5"),
        ({"dim": 25}, "dim=25"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"gated": "no"}, "gated='no'"),
    ],
)
def test_refuses_sizes_that_do_not_fit(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionTransformer(ReLU, (3, 16, 16), 5, **(SMALL | setting))
