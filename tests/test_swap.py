"""Replacing activations by call site: counted by another road, bit for bit, all or nothing."""

import copy
import random
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import forked
import list_sites
import pytest
import torch
import torch.utils.checkpoint
import torchvision
from conftest import PROCESS, ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2
from toy import Broken, Pooling, Toy

from activations import swap
from activations.frelu import FReLU
from activations.prelu import PReLU
from activations.surgery.selection import select
from activations.surgery.sites import Report
from activations.swap import find_sites, replace_activations
from activations.torch_fused import GELU
from activations.torch_nn import ReLU

# the kernels of what counts as an activation; those of gates (sigmoid, hardsigmoid, softmax) are others
KERNELS = {
    *("relu", "relu_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "gelu", "mish"),
    *("silu", "silu_", "hardswish", "hardswish_", "softplus", "tanh", "_prelu_kernel"),
}
CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
# one of each family, cheap enough for every run of the tests
FAST = {
    *(
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "mnasnet0_5",
        "mobilenet_v2",
    ),
    *("mobilenet_v3_small", "regnet_y_400mf", "resnet50", "shufflenet_v2_x0_5", "squeezenet1_0"),
    *("swin_t", "swin_v2_t", "vit_b_32"),
}
CHANNEL_DIMS = {"swin_t": {-1}, "vit_b_32": {-1}, "convnext_tiny": {-1}, "resnet50": {1}}
# sites as called in evaluation, and in training, where auxiliary heads run too; counted by hand in torchvision's code
COUNTS = {"resnet18": (17, 17), "resnet50": (49, 49), "googlenet": (57, 61), "densenet121": (121, 121)}
TIMM = {
    "mobilenetv3_small_050": 96,
    "resnet10t": 96,
    "levit_128s": 224,
    "hrnet_w18_small": 96,
    "mixer_s32_224": 224,
}
TIMM_SLOW = {"convnext_atto": 96, "tf_efficientnet_lite0": 96, "regnety_002": 96, "vit_tiny_patch16_224": 224}


class Counting(TorchDispatchMode):
    """Counts kernels of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name in KERNELS
        return func(*args, **(kwargs or {}))


@contextmanager
def fixed_norms(network: nn.Module, training: bool) -> Iterator[None]:
    """One mode, with norms in evaluation, so that one small image is enough; undone afterwards."""
    flags = [(module, module.training) for module in network.modules()]
    network.train(training)
    for module in network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.eval()
    yield
    for module, flag in flags:
        module.training = flag


def count(network: nn.Module, x: Tensor) -> list[Counter[str]]:
    """The kernels in evaluation and in training."""
    counts = []
    for training in (False, True):
        with fixed_norms(network, training), torch.no_grad(), Counting() as counting:
            network(x)
        counts.append(+counting.counts)
    return counts


def outputs(network: nn.Module, x: Tensor, seed: int = 0) -> list[Tensor]:
    """All output tensors in evaluation and in training."""
    tensors = []
    for training in (False, True):
        with fixed_norms(network, training), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            tensors += [t for t in torch.utils._pytree.tree_leaves(network(x)) if isinstance(t, Tensor)]
    return tensors


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def cheap(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Instead of torch's initializations, which take longer than the tests."""
    with torch.no_grad():
        pattern = torch.linspace(-0.05, 0.05, 9973)
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), 9973):
            flat[start : start + 9973] = pattern[: flat.numel() - start]
    return tensor


@contextmanager
def cheap_init() -> Iterator[None]:
    kinds = ("kaiming_uniform", "kaiming_normal", "xavier_uniform", "trunc_normal", "normal", "uniform")
    names = [f"{kind}_" for kind in kinds]
    with mock.patch.multiple("torch.nn.init", **dict.fromkeys(names, cheap)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce another default
        yield


def classifier(name: str) -> tuple[nn.Module, Tensor]:
    """A network of torchvision with cheap weights, and the smallest image that it takes."""
    size, options = 64, {}
    if name == "inception_v3":
        size = 299  # its auxiliary head needs that
    if name.startswith("vit"):
        size = 2 * int(name[-2:])
        options = {"image_size": size}
    if name.startswith("maxvit"):
        size = 224
        options = {"input_size": (224, 224)}
    with cheap_init():
        network = torchvision.models.get_model(name, weights=None, **options)
    return network, torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_counts(network: nn.Module, x: Tensor) -> Report:
    """PReLU everywhere, as the dispatcher sees it; but not in Swin V2's functions of constant tables."""
    before = count(network, x)
    report = replace_activations(network, PReLU, example_input=x)
    constant = "does not depend on the input, stays"
    fixed = sum(row.kind == "module ReLU" and row.why_not == constant for row in report.rows)
    assert fixed == sum(isinstance(module, ShiftedWindowAttentionV2) for module in network.modules())
    assert report.replaced == report.found == max(counts.total() for counts in before) - fixed
    assert all(row.replaced or row.gate for row in report.rows)
    for old, new in zip(before, count(network, x), strict=True):
        assert +new == +Counter({"_prelu_kernel": old.total() - fixed, "relu_": fixed})
    units = [module for module in network.modules() if isinstance(module, PReLU)]
    assert len(units) == len({id(unit.weight) for unit in units}) == report.replaced
    widths = Counter(row.num_features for row in report.rows if row.replaced)
    assert Counter(unit.num_features for unit in units) == widths
    return report


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CLASSIFIERS]
)
def test_every_call_of_torchvision_gets_a_unit(name: str) -> None:
    network, x = classifier(name)
    keys = list(network.state_dict())
    if name in COUNTS:
        assert [counts.total() for counts in count(network, x)] == list(COUNTS[name])
    report = check_counts(network, x)
    if name in CHANNEL_DIMS:
        assert {row.channel_dim for row in report.rows if not row.gate} == CHANNEL_DIMS[name]
    units = tuple(f"{n}." for n, module in network.named_modules() if isinstance(module, PReLU))
    assert [key for key in network.state_dict() if not key.startswith(units)] == keys


@pytest.mark.parametrize(
    ("name", "size"),
    [*TIMM.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in TIMM_SLOW.items())],
)
def test_every_call_of_timm_gets_a_unit(name: str, size: int) -> None:
    timm = pytest.importorskip("timm")
    with cheap_init():
        network = timm.create_model(name, pretrained=False)
    check_counts(network, torch.randn(1, 3, size, size))


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_resnet50"])
def test_segmentation(name: str) -> None:
    with cheap_init():
        network = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    check_counts(network, torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["googlenet", "shufflenet_v2_x0_5"])
def test_relu_for_relu_keeps_every_bit_and_loads_weights(name: str) -> None:
    network, x = classifier(name)
    fresh, _ = classifier(name)
    before, weights = outputs(network, x), copy.deepcopy(network.state_dict())

    report = replace_activations(network, ReLU, example_input=x)
    replace_activations(fresh, ReLU, example_input=x)

    assert report.replaced == report.found
    assert list(network.state_dict()) == list(weights)
    assert same(outputs(network, x), before)
    for parameter in fresh.parameters():
        nn.init.constant_(parameter, 0.5)
    fresh.load_state_dict(weights)  # as pretrained weights are
    assert same(outputs(fresh, x), before)


def test_a_unit_acts_on_its_channel() -> None:
    network, x = classifier("swin_t")
    replace_activations(network, partial(PReLU, init=1.0), example_input=x)
    unit = next(module for module in network.modules() if isinstance(module, PReLU))
    with torch.no_grad():
        unit.weight[7] = 0.0
    seen: list[Tensor] = []
    unit.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    network.eval()(x)
    x = -seen[0].abs() - 1
    assert (unit(x) != x).flatten(0, -2).all(0).nonzero().flatten().tolist() == [7]


def test_channels_are_followed_through_moves() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.acts = nn.Conv2d(3, 6, 1), nn.Linear(4, 5), nn.ModuleList()
            self.acts.extend(nn.ReLU() for _ in range(9))

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            x = self.acts[0](self.conv(x))  # (N, 6, 4, 4)
            nhwc = self.acts[1](x.permute(0, 2, 3, 1))
            tokens = self.acts[2](x.flatten(2).transpose(1, 2))  # (N, 16, 6)
            windows = nhwc.view(n, 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 6)
            windows = self.acts[3](windows)
            mixed = self.acts[4](self.linear(windows.transpose(1, 2)))  # (4N, 6, 5): the linear's features
            heads = tokens.reshape(n, 16, 2, 3).transpose(1, 2)  # (N, 2, 16, 3)
            attended = (heads @ heads.mT).softmax(-1) @ heads
            attended = self.acts[5](attended.transpose(1, 2).reshape(n, 16, 6))
            shuffled = x.view(n, 2, 3, 4, 4).transpose(1, 2).reshape(n, 6, 4, 4)
            shuffled = self.acts[6](shuffled)
            left, _ = tokens.chunk(2, dim=2)
            pooled = self.acts[7](x.mean((2, 3)))
            left = self.acts[8](left + 1)
            return sum(t.sum() for t in (nhwc, mixed, attended, shuffled, pooled, left))  # type: ignore

    rows = find_sites(Moves(), torch.randn(2, 3, 4, 4)).rows
    found = [(row.num_features, row.channel_dim) for row in rows if not row.gate]
    assert found == [(6, 1), (6, -1), (6, -1), (6, -1), (5, -1), (6, -1), (6, 1), (6, 1), (3, -1)]


SELECTED = {
    ("resnet18", "all"): (17, "relu", "layer4.1.relu_2"),
    ("resnet18", "one_per_block"): (8, "layer1.0.relu_1", "layer4.1.relu_1"),
    ("resnet18", "no_stem_no_last"): (12, "layer1.0.relu_1", "layer3.1.relu_2"),
    ("resnet18", "first:3"): (3, "relu", "layer1.0.relu_2"),
    ("resnet18", "last:2"): (2, "layer4.1.relu_1", "layer4.1.relu_2"),
    ("resnet18", r"re:layer[23]\.\d\.relu_2"): (4, "layer2.0.relu_2", "layer3.1.relu_2"),
    # behind the 3x3 convolution of a bottleneck
    ("resnet50", "one_per_block"): (16, "layer1.0.relu_2", "layer4.2.relu_2"),
    # behind the depthwise convolution, and not in the squeeze-and-excitation block, although that comes later
    ("mobilenet_v3_small", "one_per_block"): (11, "features.1.block.0.2", "features.11.block.1.2"),
    ("mobilenet_v3_small", "no_stem_no_last"): (21, "features.1.block.0.2", "features.8.block.2.activation"),
    # inception blocks are of different kinds; auxiliary heads are none
    ("googlenet", "one_per_block"): (9, "inception3a.branch2.1.relu", "inception5b.branch2.1.relu"),
    ("googlenet", "no_stem_no_last"): (42, "inception3a.branch1.relu", "inception4e.branch4.1.relu"),
    ("densenet121", "one_per_block"): (58, "features.denseblock1.denselayer1.relu1", "features.denseblock4.denselayer16.relu1"),
    ("swin_t", "one_per_block"): (12, "features.1.0.mlp.1", "features.7.1.mlp.1"),
    ("swin_t", "no_stem_no_last"): (10, "features.1.0.mlp.1", "features.5.5.mlp.1"),
    # no blocks: every site is one
    ("alexnet", "one_per_block"): (7, "features.1", "classifier.5"),
    ("alexnet", "no_stem_no_last"): (2, "features.1", "features.4"),
}  # fmt: skip


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in SELECTED))
def test_selections(name: str) -> None:
    network, x = classifier(name)
    if name != "googlenet":
        x = torch.randn(1, 3, 96, 96)
    with swap._analyzed(network, x, (), "call") as analysis:
        every = [site for site in analysis.sites if not site.call.why_stays]
        for (other, sites), expected in SELECTED.items():
            if other == name:
                chosen = [site.path for site in select(every, sites)]
                assert (len(chosen), chosen[0], chosen[-1]) == expected, sites


def test_the_selected_alone_are_replaced() -> None:
    network, x = classifier("mobilenet_v3_small")
    report = replace_activations(network, PReLU, sites="first:3", example_input=x)
    replaced = [row.site for row in report.rows if row.replaced]
    assert {row.why_not for row in report.rows if not row.replaced} == {"not selected", "gate, stays"}
    assert replaced == [n for n, module in network.named_modules() if isinstance(module, PReLU)]
    assert count(network, x)[0]["_prelu_kernel"] == len(replaced) == 3


WRONG_SELECTIONS = {
    "frist:2": "sites=frist:2: must be one of all, one_per_block, no_stem_no_last, first:K, last:K, re:PATTERN",
    "first:0": "K from 1 to 17 here",
    "last:18": "K from 1 to 17 here",
    "re:(": "sites=re:(: no regular expression",
    "re:gelu": "sites=re:gelu: selects nothing; sites are relu, layer1.0.relu_1,",
    3: "sites=3: must be one of all, one_per_block",
    None: "sites=None: must be one of all, one_per_block",
    ("all",): "sites=('all',): must be one of all, one_per_block",
}


def test_words_for_wrong_selections() -> None:
    network, x = classifier("resnet18")
    with refusal(network, WRONG_SELECTIONS["first:0"]):
        replace_activations(network, PReLU, sites="first:0", example_input=x)
    with swap._analyzed(network, x, (), "call") as analysis:
        for sites, message in WRONG_SELECTIONS.items():
            with pytest.raises(ValueError, match=f"^[^\n]*{re.escape(message)}[^\n]*$"):
                select(analysis.sites, sites)  # type: ignore[arg-type]


def test_no_stages_in_a_transformer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    with refusal(network, "no last stage can be told by its smaller maps"):
        replace_activations(network, PReLU, sites="no_stem_no_last", example_input=torch.randn(2, 5, 8))


@contextmanager
def refusal(network: nn.Module, message: str) -> Iterator[None]:
    """One line with ``message``, and a network that is as it was."""

    def structure() -> list[Any]:
        modules = [
            (n, id(m), type(m), m.training, sorted(vars(m)))
            for n, m in network.named_modules(remove_duplicate=False)
        ]
        return [modules, [(n, id(t)) for n, t in network.state_dict(keep_vars=True).items()]]

    before, values = structure(), copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert structure() == before
    torch.testing.assert_close(network.state_dict(), values, rtol=0, atol=0)


class Twice(nn.Module):
    """One activation module for two widths, a function, a gate, an argument of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(
        self, x: Tensor, scale: float = 1.0, *, mask: Tensor | None = None, mode: str = "wide"
    ) -> Tensor:
        x = self.relu(self.conv1(x * scale))
        x = self.relu(self.conv2(x))
        if mask is not None:
            x = x * mask
        x = F.dropout(x, 0.5, self.training)
        return F.gelu(x) * torch.sigmoid(x) if mode == "wide" else x


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_one_module_at_two_widths() -> None:
    network = Twice()
    before = outputs(copy.deepcopy(network), IMAGES)
    report = replace_activations(network, PReLU, example_input=IMAGES)
    rows = [(row.site, row.kind, row.num_features, row.shape) for row in report.rows]
    assert rows == [
        ("relu_1", "module ReLU", 4, (4, 6, 6)),
        ("relu_2", "module ReLU", 6, (6, 4, 4)),
        ("gelu", "call gelu", 6, (6, 4, 4)),
        ("sigmoid", "call sigmoid", 6, (6, 4, 4)),
    ]
    assert str(report).splitlines()[-1] == "3 of 3 sites replaced, 1 gates"
    assert not hasattr(network, "relu")
    assert type(network).__name__ == "Twice"
    assert isinstance(network, Twice)
    assert not same(outputs(network, IMAGES), before)


def test_a_rewritten_forward_keeps_arguments_and_modes() -> None:
    network, original = Twice(), Twice()
    original.load_state_dict(network.state_dict())
    replace_activations(network, ReLU, sites="first:2", example_input=IMAGES)
    assert same(outputs(network, IMAGES), outputs(original, IMAGES))  # dropout follows the mode
    torch.testing.assert_close(
        network.eval()(IMAGES, scale=2.0), original.eval()(IMAGES, scale=2.0), rtol=0, atol=0
    )
    network(IMAGES, 2.0, mode="wide", mask=None)
    with pytest.raises(AssertionError, match="mode has been specialized"):
        network(IMAGES, mode="narrow")
    with pytest.raises(AssertionError, match="mask has been specialized"):
        network(IMAGES, mask=torch.ones(1))


def test_hooks_and_frozen_parameters_stay() -> None:
    network = Twice()
    network.conv1.weight.requires_grad_(False)
    fired = []
    network.register_forward_hook(lambda *args: fired.append(1))
    replace_activations(network, PReLU, example_input=IMAGES)
    fired.clear()
    network(IMAGES).sum().backward()
    assert fired == [1]
    assert not network.conv1.weight.requires_grad
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_copies_and_checkpoints() -> None:
    network, other = Twice(), Twice()
    replace_activations(network, PReLU, example_input=IMAGES)
    replace_activations(other, PReLU, example_input=IMAGES)
    twin = copy.deepcopy(network)
    other.load_state_dict(network.state_dict())
    assert same(outputs(network, IMAGES), outputs(twin, IMAGES))
    assert same(outputs(network, IMAGES), outputs(other, IMAGES))
    with torch.no_grad():
        twin.relu_1.weight.fill_(-1.0)
    assert network.relu_1.weight.eq(0.25).all()


def test_a_second_swap() -> None:
    network, x = classifier("resnet18")
    replace_activations(network, Toy, sites="last:5", example_input=x)
    calls = {id(m): m.calls.item() for m in network.modules() if isinstance(m, Toy)}
    assert set(calls.values()) == {0}  # nothing that was run has left a trace
    assert [row.kind for row in find_sites(network, x).rows][-6:] == ["module ReLU"] + ["module Toy"] * 5
    report = replace_activations(network, GELU, example_input=x)
    assert report.replaced == 17
    assert [counts["gelu"] for counts in count(network, x)] == [17, 17]
    assert not any(isinstance(m, Toy | nn.ReLU) for m in network.modules())


def test_the_unselected_keep_their_module() -> None:
    network = Twice()
    replace_activations(network, PReLU, sites="re:relu_2", example_input=IMAGES)
    assert isinstance(network.relu, nn.ReLU)
    assert count(network, IMAGES)[0] == {"relu_": 1, "_prelu_kernel": 1, "gelu": 1}


def test_random_states_flags_and_buffers_are_left_alone() -> None:
    network, x = classifier("mobilenet_v3_small")
    network.features[3].eval()
    flags = {name: module.training for name, module in network.named_modules()}
    buffers = [(b.clone(), b._version) for b in network.buffers()]
    states = torch.get_rng_state(), random.getstate()
    find_sites(network, x)
    report = replace_activations(network, PReLU, example_input=x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(module.training == flags[name] for name, module in network.named_modules())
    assert all(
        torch.equal(b, old) and b._version == v
        for b, (old, v) in zip(network.buffers(), buffers, strict=True)
    )
    assert not flags["features.3.block.0.2"]  # an activation's, which its unit takes over
    torch.set_rng_state(states[0])
    replace_activations(
        classifier("mobilenet_v3_small")[0], Toy, example_input=x
    )  # draws num_features numbers each
    drawn = torch.get_rng_state()
    torch.set_rng_state(states[0])
    for row in filter(attrgetter("replaced"), report.rows):
        Toy(row.num_features)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), drawn)


def test_dtype_and_input_in_a_tuple() -> None:
    network = Twice().double()
    replace_activations(network, PReLU, example_input=(IMAGES.double(), 2.0))
    assert network.relu_1.weight.dtype == torch.float64
    assert network(IMAGES.double()).dtype == torch.float64


def test_shared_and_unregistered_modules() -> None:
    relu = nn.ReLU(inplace=True)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Sequential(nn.Conv2d(4, 5, 3), relu), relu)
    report = replace_activations(network, PReLU, sites="re:^(1|3)$", example_input=IMAGES)
    assert [row.site for row in report.rows] == ["1", "2.1", "3"]
    assert [type(module) for module in (network[1], network[2][1], network[3])] == [PReLU, nn.ReLU, PReLU]
    assert network[2][1] is relu

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.acts = nn.Conv2d(3, 4, 3), [nn.ReLU()]

        def forward(self, x: Tensor) -> Tensor:
            return nn.ReLU6()(self.acts[0](self.conv(x)))

    hidden = Hidden()
    report = replace_activations(hidden, PReLU, example_input=IMAGES)
    assert [row.site for row in report.rows] == ["relu", "hardtanh"]  # which is what nn.ReLU6 calls
    assert count(hidden, IMAGES)[0] == {"_prelu_kernel": 2}


class Conv(nn.Module):
    """A convolution and what a test makes of it."""

    def __init__(self, use: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.register_buffer("calls", torch.zeros(()))
        self.use, self.cache = [use], {}

    def forward(self, x: Tensor) -> Any:
        return self.use[0](self, self.conv(x))


def in_place(self: Any, x: Tensor) -> Tensor:
    F.relu_(x)  # its result is dropped
    y = x + 1
    F.relu(y, inplace=True)
    return y * x


def test_in_place_functions_whose_result_is_dropped() -> None:
    network = Conv(in_place)
    before = outputs(network, IMAGES)
    assert replace_activations(network, ReLU, example_input=IMAGES).replaced == 2
    assert same(outputs(network, IMAGES), before)


def no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.relu(x)


def in_place_view(self: Any, x: Tensor) -> Tensor:
    F.relu_(x.flatten(2))
    return x


def in_place_module(self: Any, x: Tensor) -> Tensor:
    self.relu(x)
    return x


def data_dependent(self: Any, x: Tensor) -> Tensor:
    return F.relu(x) if x.sum() > 0 else F.relu(-x)


def drawn(self: Any, x: Tensor) -> Tensor:
    return F.relu(x) * (1 if random.random() < 2 else 0)


def counted(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return F.relu(x)


def mode_dependent(self: Any, x: Tensor) -> Tensor:
    return F.relu(x) if self.training else F.relu(F.gelu(x))


def cached(self: Any, x: Tensor) -> Tensor:
    self.cache.setdefault(str(x.device), x)
    return F.relu(x)


def heads(self: Any, x: Tensor) -> Tensor:
    return self.relu(x.unflatten(1, (2, 2)))


OBSTACLES = {
    no_grad: "relu_ cannot be replaced: Conv.forward cannot be rewritten: it switches gradients or autocast on or off",
    in_place_view: "relu_ cannot be replaced: what its in-place call changes is used elsewhere",
    in_place_module: "relu cannot be replaced: what its in-place call changes is used elsewhere",
    data_dependent: "relu_ cannot be replaced: Conv.forward cannot be rewritten: it decides by the values of a tensor",
    drawn: "Conv.forward cannot be rewritten: it draws random numbers, which the trace would fix",
    counted: "Conv.forward cannot be rewritten: it makes tensors of its own or sets attributes",
    cached: "Conv.forward cannot be rewritten: it makes tensors of its own or sets attributes",
    mode_dependent: "Conv.forward cannot be rewritten: it calls other activations in training than in evaluation",
    heads: "relu cannot be replaced: which dimension of (2, 2, 2, 6, 6) holds the channels cannot be told",
}


@pytest.mark.parametrize("use", OBSTACLES, ids=lambda use: use.__name__)
def test_words_for_what_cannot_be_replaced(use: Callable[[Any, Tensor], Tensor]) -> None:
    network = Conv(use)
    with refusal(network, OBSTACLES[use]):
        replace_activations(network, PReLU, example_input=IMAGES)
    whole = nn.Sequential(network, nn.Flatten(), nn.LazyLinear(5), nn.ReLU())
    whole(IMAGES)
    rows = find_sites(whole, IMAGES).rows
    assert [row.site for row in rows if not row.why_not] == ["3"]  # what can be replaced still can
    assert replace_activations(whole, PReLU, sites="re:^3$", example_input=IMAGES).replaced == 1


def test_words_for_shared_weights_hooks_and_compiled_code() -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    shared = nn.Sequential(block, block)
    with refusal(
        shared, "0.1 cannot be replaced: its Sequential 0 runs 2 times in one forward, with the same weights"
    ):
        replace_activations(shared, PReLU, example_input=IMAGES)
    hooked = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    hooked[1].register_forward_hook(lambda *args: None)
    with refusal(hooked, "1 cannot be replaced: it has hooks, which its unit would lose"):
        replace_activations(hooked, PReLU, example_input=IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated, and still met
        scripted = nn.Sequential(
            torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Tanh(), nn.PReLU())),
            nn.Conv2d(3, 3, 1),
        )
        message = "relu \\(and 2 more\\) cannot be replaced: it is called by compiled code"
        with pytest.raises(ValueError, match=message):
            replace_activations(scripted, PReLU, example_input=IMAGES)


def test_words_for_hopeless_networks() -> None:
    with refusal(nn.ReLU(), "the network is itself a ReLU"):
        replace_activations(nn.ReLU(), PReLU, example_input=IMAGES)
    linear = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())
    with refusal(linear, "the network calls no activation: there is nothing to replace"):
        replace_activations(linear, PReLU, example_input=IMAGES)
    conv = nn.Sequential(nn.Conv2d(5, 8, 1), nn.ReLU())
    with refusal(conv, "the network fails on example_input in training: Given groups=1"):
        replace_activations(conv, PReLU, example_input=IMAGES)
    noisy = Conv(lambda self, x: self.relu(x * next(self.use[1])))
    noisy.use.append(iter(range(1, 1000)))
    with refusal(noisy, "the network's outputs differ between two runs from the same random state"):
        replace_activations(noisy, PReLU, example_input=IMAGES)


UNFIT = {
    "a window on tokens": (
        FReLU,
        "FReLU at 1: input of shape (2, 3, 8, 4): a window over positions must have (N, C, H, W)",
    ),
    "an error": (Broken, "Broken at 1: input of shape (2, 3, 8, 4): (N, C) is needed"),
    "another shape": (
        Pooling,
        "Pooling at 1: (2, 3, 8, 4) torch.float32 goes in and (1, 3, 8, 4) torch.float32 comes",
    ),
    "no channel_dim": (
        nn.ReLU,
        "act_layer for 1, 4 channels: ReLU.__init__() got an unexpected keyword argument",
    ),
    "no module": (lambda n, channel_dim: F.relu, "act_layer for 1 made a function: must be a module"),
    "a hyper-parameter": (
        partial(PReLU, init=float("nan")),
        "act_layer for 1, 4 channels: init=nan: must be a finite number",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_words_for_units_that_cannot_stand_there(case: str) -> None:
    act_layer, message = UNFIT[case]
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    if act_layer is FReLU:
        with refusal(network, "FReLU at 1: input of shape (2, 8, 4)"):
            replace_activations(network, act_layer, example_input=IMAGES[:, 0])
        return
    with refusal(network, message):
        replace_activations(network, act_layer, example_input=IMAGES)


def test_one_unit_for_all_is_refused() -> None:
    unit = PReLU(4)
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    with refusal(network, "act_layer made the same module for several sites"):
        replace_activations(network, lambda n, channel_dim: unit, example_input=IMAGES)


class h_sigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + 3) / 6


class h_swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = h_sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(x)


def test_functions_of_parameters_are_no_activations() -> None:
    def use(self: Any, x: Tensor) -> Tensor:
        return F.relu(x) * F.softplus(self.conv.bias).view(1, 4, 1, 1) + self.conv.weight.tanh().mean()

    network = Conv(use)
    report = replace_activations(network, PReLU, example_input=IMAGES)
    assert [(row.kind, row.gate) for row in report.rows] == [
        ("call relu", False),
        ("call softplus", True),
        ("call tanh", True),
    ]


def test_gates_written_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), h_swish(), h_sigmoid(), Conv(lambda self, x: x * F.relu6(x + 3) / 6)
    )
    network[3].conv = nn.Conv2d(4, 4, 1)
    report = replace_activations(network, PReLU, example_input=IMAGES)
    assert [(row.site, row.gate, row.replaced) for row in report.rows] == [
        ("1", False, True),
        ("2", True, False),
        ("3.relu6", True, False),
    ]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant: bool) -> None:
    def use(self: Any, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.relu, x, use_reentrant=reentrant)

    network = Conv(use)
    replace_activations(network, PReLU, example_input=IMAGES)
    network(IMAGES).sum().backward()
    assert network.relu.weight.grad is not None


HAND_WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": lambda y: y * torch.tanh(F.softplus(y)),
    "gelu": lambda y: 0.5 * y * (1 + torch.tanh(0.79788 * (y + 0.044715 * y**3))),
    "hardswish": lambda y: y * F.hardtanh(y * 0.2 + 0.5, 0.0, 1.0),
    "in place": lambda y: torch.tanh(y).mul_(y),
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_parts_of_activations_written_by_hand_stay(name: str) -> None:
    network = Conv(lambda self, x: self.relu(HAND_WRITTEN[name](self.conv(x[:, :3]))))
    report = replace_activations(network, PReLU, example_input=IMAGES)
    assert [row.site for row in report.rows if row.replaced] == ["relu"]
    reasons = {row.why_not for row in report.rows if not row.replaced}
    assert reasons == {"part of hand-written arithmetic, stays"}


def test_factors_that_are_no_functions_of_each_other_are_sites() -> None:
    def use(self: Any, x: Tensor) -> Tensor:
        excited = x * F.hardtanh(self.mix(x.mean((2, 3), keepdim=True)), 0.0, 1.0)
        residual = excited + torch.tanh(self.mix(excited))
        return F.softplus(residual) * torch.tanh(self.mix(x)) + residual * x

    network = Conv(use)
    network.mix = nn.Conv2d(4, 4, 1)
    assert replace_activations(network, PReLU, example_input=IMAGES).replaced == 4


def test_functions_of_constants_are_no_sites() -> None:
    def use(self: Any, x: Tensor) -> Tensor:
        x = F.relu(x) * torch.tanh(self.gain.view(1, -1, 1, 1) * 2)
        written = torch.zeros(2, 4, 6, 6)
        written[:] = x
        return F.relu(
            F.conv2d(F.gelu(written), F.softplus(self.conv.weight * 2)[:, :1].expand(-1, 4, -1, -1))
        )

    network = Conv(use)
    network.gain = nn.Parameter(torch.ones(4))
    rows = find_sites(network, IMAGES).rows
    fixed = [row.kind for row in rows if row.why_not == "does not depend on the input, stays"]
    assert fixed == ["call tanh", "call softplus"]
    assert [row.kind for row in rows if not row.gate] == ["call relu", "call gelu", "call relu"]


def test_channels_through_norms_and_in_rank_two() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(7, 5)
            self.tokens, self.maps = nn.LayerNorm(36), nn.LayerNorm([4, 6, 6])
            self.acts = nn.ModuleList(nn.ReLU() for _ in range(5))

        def forward(self, x: Tensor) -> Any:
            x = self.conv(x)
            first = self.acts[0](self.tokens(x.flatten(2)))  # over positions
            second = self.acts[1](self.maps(x))
            flat = self.acts[2](x.flatten(1))
            rows = self.acts[3](self.linear(torch.ones(3, 7) * x.mean()))
            return first, second, flat, self.acts[4](rows.t())

    rows = find_sites(Norms(), IMAGES).rows
    assert [(row.num_features, row.channel_dim) for row in rows] == [
        (4, 1),
        (4, 1),
        (144, 1),
        (5, 1),
        (None, None),
    ]
    assert rows[-1].why_not.startswith("unbatched input")


def test_words_for_unbatched_inputs() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with refusal(
        network, "1 cannot be replaced: unbatched input: dimension 0 of (4, 6, 6) holds the channels"
    ):
        replace_activations(network, PReLU, example_input=IMAGES[0])


def test_moves_that_leave_one_dimension() -> None:
    network = Conv(lambda self, x: F.relu(x) + x[0, :, 0, 0].view(4, 1, 1) + x.mean((0, 2, 3)).view(-1, 1, 1))
    assert replace_activations(network, PReLU, example_input=IMAGES).replaced == 1


def test_another_order_in_training_than_in_evaluation() -> None:
    def use(self: Any, x: Tensor) -> Any:
        if self.training:
            return F.relu(x), F.relu(self.other(x))
        other = F.relu(self.other(x))
        return F.relu(x), other

    network = Conv(use)
    network.other = nn.Conv2d(4, 4, 1)
    message = "it calls its activations in another order in training than in evaluation"
    with refusal(network, message):
        replace_activations(network, PReLU, example_input=IMAGES)


def test_dropout_in_training_alone_is_no_other_order() -> None:
    def use(self: Any, x: Tensor) -> Tensor:
        x = F.relu(x)
        return F.relu(x if not self.training else F.dropout(x, 0.5))

    assert replace_activations(Conv(use), PReLU, example_input=IMAGES).replaced == 2


def test_nothing_hides_behind_weights_of_zero() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            self.relu(y)  # its result is dropped
            return x + self.norm(y)

    network = Residual()
    with refusal(network, "relu cannot be replaced: what its in-place call changes is used elsewhere"):
        replace_activations(network, ReLU, example_input=IMAGES)


def test_words_for_outputs_that_cannot_be_seen() -> None:
    network = Conv(lambda self, x: SimpleNamespace(out=self.relu(x)))
    with refusal(network, "there are no tensors among the network's outputs"):
        replace_activations(network, PReLU, example_input=IMAGES)


def test_words_for_weights_without_values() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    with pytest.raises(ValueError, match="the network has lazy modules without weights"):
        replace_activations(lazy, PReLU, example_input=IMAGES)
    assert torch.nn.parameter.is_lazy(lazy[0].weight)
    meta = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to("meta")
    with pytest.raises(ValueError, match="the network is on the meta device"):
        replace_activations(meta, PReLU, example_input=IMAGES.to("meta"))


def test_what_a_forward_writes_is_put_back() -> None:
    class Initialized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(4))
            self.register_buffer("mean", None)

        def forward(self, x: Tensor) -> Tensor:
            if self.mean is None:
                self.mean = x.detach().mean()
                self.shift.data.copy_(self.mean.expand(4) + 1)
            return x + self.shift.view(1, -1, 1, 1)

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Initialized(), nn.ReLU())
    replace_activations(network, PReLU, example_input=IMAGES)
    assert network[1].mean is None
    assert network[1].shift.eq(0).all()


def test_units_whose_input_is_overwritten() -> None:
    def use(self: Any, x: Tensor) -> Tensor:
        return x.add_(self.other(F.relu(x)))

    network = Conv(use)
    network.other = nn.Conv2d(4, 4, 1)
    network(IMAGES).sum().backward()  # relu keeps its output
    message = "PReLU at relu_: the network overwrites in place what it keeps for its gradient"
    with refusal(network, message):
        replace_activations(network, PReLU, example_input=IMAGES)


def test_recurrent_layers_stay() -> None:
    class Recurrent(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.relu = layer, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.layer(x)[0])

    for layer in (nn.LSTM(8, 4, batch_first=True), nn.GRU(8, 4, batch_first=True)):
        assert replace_activations(Recurrent(layer), PReLU, example_input=IMAGES[:, 0]).replaced == 1


def test_the_last_stage_of_a_dilated_net() -> None:
    with cheap_init():
        network = torchvision.models.get_model("fcn_resnet50", weights=None, weights_backbone=None)
    x = torch.randn(1, 3, 64, 64)
    report = replace_activations(network, PReLU, sites="no_stem_no_last", example_input=x)
    replaced = [row.site for row in report.rows if row.replaced]
    ends = "backbone.layer1.0.relu_1", "backbone.layer3.5.relu_3"
    assert (len(replaced), replaced[0], replaced[-1]) == (39, *ends)


def test_a_list_of_tensors_as_argument() -> None:
    class Fuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)])
            self.relu = nn.ReLU()

        def forward(self, xs: list[Tensor]) -> list[Tensor]:
            for i, conv in enumerate(self.convs):
                xs[i] = self.relu(conv(xs[i]))
            return xs

    network = Fuse()
    report = replace_activations(network, PReLU, example_input=([IMAGES, IMAGES],))
    assert [row.num_features for row in report.rows] == [4, 5]
    with pytest.raises(AssertionError, match="xs had 2 items"):
        network([IMAGES] * 3)


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.ReLU()], ids=str)
def test_transformer_layers_have_no_short_cut_past_a_unit(activation: Any) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    tokens = torch.randn(2, 5, 8)
    report = replace_activations(network, PReLU, example_input=tokens)
    assert [row.site for row in report.rows] == ["layers.0.activation", "layers.1.activation"]
    with torch.no_grad(), Counting() as counting:
        network(tokens, mask=torch.zeros(5, 5))
    assert +counting.counts == {"_prelu_kernel": 2}


def test_frelu_in_every_block() -> None:
    network, x = classifier("resnet18")
    assert replace_activations(network, FReLU, sites="one_per_block", example_input=x).replaced == 8
    network.train()(torch.cat([x, x])).sum().backward()


def test_export() -> None:
    network, x = classifier("resnet18")
    replace_activations(network, PReLU, example_input=x)
    exported = torch.export.export(network.eval(), (x,))
    torch.testing.assert_close(exported.module()(x), network(x))


@pytest.mark.slow
def test_compile() -> None:
    network, x = classifier("resnet18")
    replace_activations(network, PReLU, example_input=x)
    network.eval()
    torch.testing.assert_close(torch.compile(network, fullgraph=True)(x), network(x), rtol=1e-4, atol=1e-5)


def test_list_sites() -> None:
    done = run_script("torchvision:mobilenet_v3_small", "--size", "64")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^features\.1\.block\.1\.activation +module ReLU +8 +1 +8x1x1", done.stdout, re.MULTILINE
    )
    assert "33 of 33 sites can be replaced, 9 gates" in done.stdout
    failed = run_script("torchvision:vit_b_16", "--size", "64")
    assert failed.returncode == 1
    assert failed.stderr.startswith("actbench: torchvision:vit_b_16: the network fails on example_input")
    assert failed.stderr.count("\n") == 1


def run_script(*arguments: str) -> subprocess.CompletedProcess:
    return forked.run(["scripts/list_sites.py", *arguments], cwd=ROOT, env=PROCESS["env"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet19", "torchvision:resnet19: no such network; did you mean resnet18,"),
        ("resnet18", "resnet18: must be torchvision:NAME or timm:NAME"),
        ("timm:resnet10t", "timm:resnet10t: timm is not installed; pip install timm"),
    ],
)
def test_list_sites_words(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not there
    with pytest.raises(ValueError, match=message):
        list_sites.build(name)
