"""Faults of the swap that users of such tools report: each test states the right value."""

import logging
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import config, make_factory
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from activations.prelu import PReLU
from activations.swap import find_sites, replace_activations
from activations.torch_nn import ReLU
from runners.cost import flops
from runners.factory import validate_network

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class First(nn.Module):
    """A convolution, and what a test does in the first forward."""

    def __init__(self, act: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.register_buffer("seen", torch.zeros(()))
        self.list, self.holder, self.act, self.begun = [[1]], Holder(), [act], False
        self.torch_rng, self.numpy_rng = torch.Generator(), np.random.default_rng(0)
        self.python_rng = random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.begun:
            self.begun = True
            self.act[0](self, x)
        return self.relu(self.norm(self.conv(x)))


class Holder:
    """A plain object with a state, and a class with one."""

    calls = 0

    def __init__(self) -> None:
        self.cache: dict[str, Tensor] = {}


def hook(*args: Any) -> None:
    """Any hook that changes nothing."""


def change_class(self: Any, x: Tensor) -> None:
    type(self).forwards = 1


def change_gradient(self: Any, x: Tensor) -> None:
    with torch.enable_grad():
        self.conv(x).sum().backward()


def draw(self: Any, x: Tensor) -> None:
    torch.randn(3), torch.randn(3, generator=self.torch_rng)
    np.random.rand(3), self.numpy_rng.random(3)  # noqa: NPY002
    random.random(), self.python_rng.random()


FIRST: dict[str, Callable[[Any, Tensor], Any]] = {
    "forward hook": lambda self, x: self.conv.register_forward_hook(hook),
    "forward pre-hook": lambda self, x: self.conv.register_forward_pre_hook(hook),
    "hook with keywords": lambda self, x: self.conv.register_forward_hook(
        lambda *args: None, with_kwargs=True, always_call=True
    ),
    "backward hook": lambda self, x: self.register_full_backward_hook(hook),
    "backward pre-hook": lambda self, x: self.relu.register_full_backward_pre_hook(hook),
    "state_dict hook": lambda self, x: self.register_state_dict_post_hook(hook),
    "state_dict pre-hook": lambda self, x: self.conv.register_state_dict_pre_hook(hook),
    "loading hook": lambda self, x: self.register_load_state_dict_post_hook(hook),
    "loading pre-hook": lambda self, x: self.register_load_state_dict_pre_hook(hook),
    "tensor hook": lambda self, x: self.conv.weight.register_hook(lambda gradient: None),
    "accumulation hook": lambda self, x: self.conv.weight.register_post_accumulate_grad_hook(hook),
    "buffer": lambda self, x: self.seen.add_(1),
    "parameter of other values": lambda self, x: self.norm.weight.data.fill_(2.0),
    "parameter of another shape": lambda self, x: setattr(
        self.norm.bias, "data", torch.ones(1).expand(4).contiguous()
    ),
    "new buffer": lambda self, x: self.register_buffer("scale", x.mean()),
    "new module": lambda self, x: self.add_module("late", nn.ReLU()),
    "attribute": lambda self, x: setattr(self, "size", x.shape),
    "nested list": lambda self, x: self.list[0].append(2),
    "plain object": lambda self, x: self.holder.cache.update(x=x),
    "class": change_class,
    "training flag": lambda self, x: self.norm.eval(),
    "frozen": lambda self, x: self.conv.requires_grad_(False),
    "gradient": change_gradient,
    "tensor attribute": lambda self, x: setattr(self.conv.weight, "tag", 1),
    "random numbers": draw,
}


def flat(value: Any, seen: set[int]) -> Any:
    """Everything that a network is, as nested lists of values and identities."""
    if isinstance(value, Tensor):
        own = (id(value), value.data_ptr(), value.detach().clone().tolist(), value.requires_grad)
        hooks = [
            list(getattr(value, name) or ()) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
        ]
        gradient = None if value.grad is None else value.grad.tolist()
        return [own, hooks, gradient, flat(vars(value), seen)]
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict):
        return [(key, id(item), flat(item, seen)) for key, item in value.items()]
    if isinstance(value, list):
        return [flat(item, seen) for item in value]
    if isinstance(value, nn.Module | Holder) and id(value) not in seen:
        seen.add(id(value))
        return [type(value), sorted(vars(type(value))), flat(vars(value), seen)]
    return id(value)


def everything(network: nn.Module) -> Any:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), rest
    return flat(network, set()), states


@pytest.mark.parametrize("case", FIRST)
def test_nothing_stays_of_a_first_forward(case: str) -> None:
    network = First(FIRST[case])
    before = everything(network)
    assert [row.why_not for row in find_sites(network, IMAGES).rows] == [""]
    assert everything(network) == before
    with pytest.raises(ValueError, match="Refusing at relu: init"):
        replace_activations(network, Refusing, example_input=IMAGES)
    assert everything(network) == before
    replace_activations(network, PReLU, example_input=IMAGES)
    assert isinstance(network.relu, PReLU)
    before = everything(network)
    validate_network(network, (3, 8, 8), (4, 6, 6))
    flops(network, (3, 8, 8))
    assert everything(network) == before


class Refusing(PReLU):
    """Draws from every generator when it is made, and fails when it is tried."""

    def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        np.random.rand(), random.random(), torch.rand(1)  # noqa: NPY002

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("init")


def test_nothing_stays_of_a_forward_that_fails() -> None:
    def fail(self: Any, x: Tensor) -> None:
        self.conv.register_forward_hook(hook)
        draw(self, x)
        raise RuntimeError("no")

    network = First(fail)
    before = everything(network)
    for function in (find_sites, lambda network, x: replace_activations(network, PReLU, example_input=x)):
        with pytest.raises(ValueError, match="the network fails on example_input in training: no"):
            function(network, IMAGES)
        assert everything(network) == before


class Capturing(nn.Module):
    """Registers hooks on its children in the first forward to return what they put out, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.installed = nn.Conv2d(3, 4, 3), nn.ReLU(), False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.captured: list[Tensor] = []
        if not self.installed:
            self.installed = True
            for child in self.children():
                child.register_forward_hook(lambda module, args, out: self.captured.append(out))
        return self.relu(self.conv(x)), *self.captured


def test_hooks_of_the_first_forward_are_registered_once() -> None:
    network = Capturing()
    find_sites(network, IMAGES)
    with pytest.raises(ValueError, match="Refusing at relu: init"):
        replace_activations(network, Refusing, example_input=IMAGES)
    replace_activations(network, PReLU, example_input=IMAGES)
    assert len(network(IMAGES)) == 3
    assert len(network(IMAGES)) == 3


def test_what_hooks_of_the_user_collected_is_put_back() -> None:
    network, collected = First(hook), []
    network.conv.register_forward_hook(lambda module, args, out: collected.append(out))
    find_sites(network, IMAGES)
    assert collected == []


def test_segformer_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    options = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4]}
    network = transformers.SegformerForImageClassification(transformers.SegformerConfig(**options)).eval()
    x = torch.randn(1, 3, 64, 64)
    assert replace_activations(network, PReLU, example_input=x).replaced == 4
    assert len(network(x, output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize("library", ["numpy", "Python"])
def test_networks_that_draw_from_other_generators(library: str) -> None:
    """Stochastic depth by numpy or Python, in a block whose forward need not be rewritten."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                drawn = np.random.rand() if library == "numpy" else random.random()  # noqa: NPY002
                x = x * drawn
            return x + self.block(x)

    network = Skipping()
    assert replace_activations(network, ReLU, example_input=IMAGES).replaced == 1


class Used(nn.Module):
    """A convolution, and what a test makes of it; some of it by number."""

    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.use = nn.Conv2d(3, 4, 3, padding=1), [use]
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return self.use[0](self, self.conv(x), scale)


def number(self: Any, x: Tensor, scale: float) -> Tensor:
    return F.relu(x * scale if scale > 1 else x)


def asserted(self: Any, x: Tensor, scale: float) -> Tensor:
    assert x.shape[1] == 4, "four channels are needed"
    return F.relu(x)


def zeros(self: Any, x: Tensor, scale: float) -> Tensor:
    n, c, h, w = x.shape
    return F.relu(torch.cat([x, torch.zeros(n, 1, h, w, dtype=x.dtype, device=x.device)], 1)[:, :c])


def numbers(self: Any, x: Tensor, scale: float) -> Tensor:
    return F.relu(x * torch.tensor(2.0)) + torch.arange(8.0)


def noise(self: Any, x: Tensor, scale: float) -> Tensor:
    return F.relu(x + torch.randn(1)) * torch.rand(x.shape)


def padded(self: Any, x: Tensor, scale: float) -> Tensor:
    h, w = x.shape[-2:]
    if h % 5 or w % 5:
        x = F.pad(x, (0, 5 - w % 5, 0, 5 - h % 5))
    return F.relu(x)


def looped(self: Any, x: Tensor, scale: float) -> Tensor:
    for i in range(x.shape[1] // 2):
        x = F.relu(self.convs[i](x))
    return x


def resized(self: Any, x: Tensor, scale: float) -> Tensor:
    return F.interpolate(F.relu(x), size=(int(x.shape[2] * 1.5), min(x.shape[-2:]) * 2))


@pytest.mark.parametrize("use", [number, asserted, zeros, numbers, noise, padded, looped, resized])
def test_forwards_that_decide_by_sizes_and_numbers(use: Callable[..., Any]) -> None:
    network, original = Used(use), Used(use)
    original.load_state_dict(network.state_dict())
    report = replace_activations(network, ReLU, example_input=IMAGES)
    assert report.replaced == report.found >= 1
    for n in (1, 2, 5):  # also for batches of other sizes
        x = torch.randn(n, 3, 8, 8)
        torch.manual_seed(0)
        expected = original(x)
        torch.manual_seed(0)
        assert torch.equal(network(x), expected)


def test_decisions_that_were_fixed_are_asserted() -> None:
    network = Used(number)
    replace_activations(network, ReLU, example_input=IMAGES)
    torch.testing.assert_close(network(IMAGES, 0.5), network(IMAGES))
    message = "Used.forward was rewritten for False here: `return F.relu(x * scale if scale > 1 else x)` (test_faults_swap.py"
    with pytest.raises(AssertionError, match=re.escape(message)):
        network(IMAGES, 2.0)
    network = Used(asserted)
    replace_activations(network, ReLU, example_input=IMAGES)
    network.conv = nn.Conv2d(3, 5, 1)
    with pytest.raises(AssertionError, match=re.escape("`assert x.shape[1] == 4")):
        network(IMAGES)


def by_values(self: Any, x: Tensor, scale: float) -> Tensor:
    if x.sum() > 0:
        x = x + 1
    return F.relu(x)


def by_item(self: Any, x: Tensor, scale: float) -> Tensor:
    return F.relu(x[: int(x.abs().max().item()) + 1])


def by_batch(self: Any, x: Tensor, scale: float) -> Tensor:
    for _ in range(x.shape[0]):
        x = x + 1
    return F.relu(x)


def by_single(self: Any, x: Tensor, scale: float) -> Tensor:
    if len(x) == 1:
        x = x * 2
    return F.relu(x)


def by_numpy(self: Any, x: Tensor, scale: float) -> Tensor:
    return F.relu(x) + torch.from_numpy(np.sign(x.detach().numpy()))


REFUSED = {
    by_values: "it decides by the values of a tensor: `if x.sum() > 0:` (test_faults_swap.py, line ",
    by_item: "it decides by the values of a tensor: `return F.relu(x[: int(x.abs().max().item()) + 1])`",
    by_batch: "it decides by the size of the batch: `for _ in range(x.shape[0]):`",
    by_single: "it decides by the size of the batch: `if len(x) == 1:`",
    by_numpy: "what it does cannot be followed: `return F.relu(x) + torch.from_numpy(np.sign(x.detach().numpy()))`",
}


@pytest.mark.parametrize("use", REFUSED, ids=lambda use: use.__name__)
def test_refusals_are_in_the_network_s_words(use: Callable[..., Any]) -> None:
    message = f"relu cannot be replaced: Used.forward cannot be rewritten: {REFUSED[use]}"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        replace_activations(Used(use), ReLU, example_input=IMAGES)
    assert "\n" not in str(caught.value)
    assert not re.search("prox|symbolic|torch.fx", str(caught.value), re.IGNORECASE)


TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


@pytest.mark.parametrize("sites", ["all", "first:1", "last:1"])
@pytest.mark.parametrize("activation", ["prelu", "swish", "dyrelu", "relu"])
def test_a_transformer_takes_a_padding_mask_in_evaluation(sites: str, activation: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = nn.TransformerEncoder(layer, 2).eval()
    report = replace_activations(network, make_factory(activation), sites=sites, example_input=TOKENS)
    assert report.replaced == (2 if sites == "all" else 1)
    with torch.no_grad():
        fast = network(TOKENS, src_key_padding_mask=PADDING)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = network(TOKENS, src_key_padding_mask=PADDING)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(fast, slow)


class Snake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.a * x) ** 2 / self.a


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


class ACON(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(2, 1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        difference = (self.p[0] - self.p[1]) * x
        return difference * torch.sigmoid(difference) + self.p[1] * x


class MetaACON(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)) * x)


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.gamma


class RMSNorm(LayerScale):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma / x.square().mean(1, keepdim=True).sqrt()


class Quantizer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 16).round() / 16


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


class Opening(nn.Module):
    """A gate under another name."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / 6 + 0.5).clamp(0, 1)


class Compress(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs().log1p()


def conv(inputs: int = 4) -> nn.Module:
    return nn.Conv2d(inputs, 4, 3, padding=1)


def own_classes() -> nn.Sequential:
    return nn.Sequential(
        *(Compress(), conv(3), Snake(4), conv(), Sine(), conv(), ACON(4), LayerScale(4), RMSNorm(4)),
        *(Quantizer(), Noise(), conv(), Opening(), conv(), MetaACON(4), conv()),
    )


def test_classes_of_the_network_s_own_are_activations() -> None:
    network = own_classes()
    rows = find_sites(network, IMAGES).rows
    assert [row.kind for row in rows if not row.gate] == ["module Snake", "module Sine", "module ACON"]
    assert {row.kind: row.why_not for row in rows if row.gate} == {
        "module Compress": "no learned layer before it, stays",
        "module Opening": "gate, stays",
        "call sigmoid": "gate, stays",
    }
    report = replace_activations(network, PReLU, example_input=IMAGES)
    assert report.replaced == 3
    kept = [type(network[i]) for i in (0, 7, 8, 9, 10, 12, 14)]
    assert kept == [Compress, LayerScale, RMSNorm, Quantizer, Noise, Opening, MetaACON]


@pytest.mark.parametrize("activations", ["MetaACON", ["MetaACON"], (MetaACON,)])
def test_activations_by_name(activations: Any) -> None:
    network = own_classes()
    report = replace_activations(network, PReLU, activations=activations, example_input=IMAGES)
    assert report.replaced == 4
    assert isinstance(network[14], PReLU)


@pytest.mark.parametrize("wrong", ["MetaAcon", ["Snake", "MetaAcon"], 3])
def test_wrong_names_of_activations(wrong: Any) -> None:
    message = (
        r"activations=(MetaAcon|3): the network has no module of this class; it has ACON, Compress, Conv2d, "
    )
    with pytest.raises(ValueError, match=message):
        find_sites(own_classes(), IMAGES, activations=wrong)


ENDS: dict[str, Callable[[], nn.Module]] = {
    "module": nn.Tanh,
    "reshaped": lambda: nn.Sequential(nn.Tanh(), nn.Flatten()),
    "function": lambda: Ending(torch.tanh),
    "scaled": lambda: Ending(lambda x: 0.5 * torch.tanh(x) + 0.5),
    "in a dict": lambda: Ending(lambda x: {"out": F.hardtanh(x)}),
    "own": lambda: Ending(Sine()),
}


class Ending(nn.Module):
    """A convolution and a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.function = conv(), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


@pytest.mark.parametrize("case", ENDS)
def test_the_output_s_activation_is_replaced_by_its_name_alone(case: str) -> None:
    network = nn.Sequential(conv(3), nn.Tanh(), conv(), ENDS[case]())
    report = replace_activations(network, PReLU, example_input=IMAGES)
    assert [(row.replaced, row.output) for row in report.rows] == [(True, False), (False, True)]
    assert report.rows[1].why_not == "the network's output: only re:PATTERN replaces it"
    assert str(report).splitlines()[-1] == "1 of 2 sites replaced, 0 gates"
    assert replace_activations(network, PReLU, sites="re:^3", example_input=IMAGES).replaced == 1


def test_a_relu_at_the_end_and_a_tanh_that_is_used_again_are_no_outputs() -> None:
    for last in (nn.ReLU(), Ending(lambda x: nn.ReLU6()(x))):
        assert not any(row.output for row in find_sites(nn.Sequential(conv(3), conv(), last), IMAGES).rows)
    for function in (lambda x: x + torch.tanh(x), lambda x: torch.tanh(x).add_(x)):
        network = nn.Sequential(conv(3), Ending(function))
        assert not any(row.output for row in find_sites(network, IMAGES).rows)
    only = nn.Sequential(conv(3), nn.Tanh())
    message = "the network calls no activation but that of its output, 1: name it with sites=re:PATTERN"
    with pytest.raises(ValueError, match=message):
        replace_activations(only, PReLU, example_input=IMAGES)


class Siamese(nn.Module):
    """A branch that runs twice; in it one activation for two calls, and a function."""

    def __init__(self, widths: tuple[int, int] = (4, 4)) -> None:
        super().__init__()
        self.branch = Branch(widths)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) - self.branch(x.flip(3))


class Branch(nn.Module):
    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        first, second = widths
        self.conv1, self.conv2 = nn.Conv2d(3, first, 1), nn.Conv2d(first, second, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.relu(self.conv2(self.relu(self.conv1(x)))))


def test_one_unit_for_all_calls_of_a_module() -> None:
    message = "branch.relu_1 (and 2 more) cannot be replaced: its Branch branch runs 2 times in one forward"
    with pytest.raises(ValueError, match=re.escape(message)):
        replace_activations(Siamese(), PReLU, example_input=IMAGES)
    network = Siamese()
    report = replace_activations(network, PReLU, shared="unit", example_input=IMAGES)
    assert [(row.site, row.calls) for row in report.rows] == [("branch.relu", 4), ("branch.gelu", 2)]
    assert isinstance(network.branch.relu, PReLU)
    seen: list[Tensor] = []
    network.branch.relu.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(IMAGES).sum().backward()
    assert len(seen) == 4
    assert network.branch.gelu.weight.grad is not None


def test_calls_of_other_widths_do_not_share_a_unit() -> None:
    network = Siamese((4, 6))
    report = replace_activations(network, PReLU, shared="unit", example_input=IMAGES)
    rows = [(row.site, row.num_features, row.calls) for row in report.rows]
    assert rows == [("branch.relu_1", 4, 2), ("branch.relu_2", 6, 2), ("branch.gelu", 6, 2)]

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.ReLU())

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.head(x.flatten(1)), self.head(x[:, :1].flatten(1))

    message = "head.0 cannot be replaced: its Sequential head runs 2 times in one forward, and not with the same channels"
    with pytest.raises(ValueError, match=message):
        replace_activations(Pyramid(), PReLU, shared="unit", example_input=IMAGES)


def test_shared_relu_for_relu_keeps_every_bit() -> None:
    network, original = Siamese(), Siamese()
    original.load_state_dict(network.state_dict())
    replace_activations(network, ReLU, sites="re:relu", shared="unit", example_input=IMAGES)
    assert torch.equal(network(IMAGES), original(IMAGES))


def test_wrong_word_for_shared() -> None:
    with pytest.raises(ValueError, match="shared='units': must be one of call, unit"):
        find_sites(Siamese(), IMAGES, shared="units")


def generator(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """A made-up model for the configuration."""
    first, last = nn.Conv2d(input_shape[0], 3, 1), nn.Conv2d(4, num_outputs, 1)
    return nn.Sequential(first, Snake(3), Siamese(), MetaACON(4), last, nn.Tanh())


def build(*overrides: str) -> nn.Module:
    network = config("task=digits", "network=torchvision", "~network.name", *overrides).network
    model = {"model": {"path": f"{__name__}.generator"}}
    return instantiate(OmegaConf.merge(network, model))(make_factory("prelu"), (3, 8, 8), 2)


def test_options_of_the_group_network(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="runs 2 times in one forward"):
        build()
    with caplog.at_level(logging.WARNING, "actbench"):
        network = build("network.shared=unit")
    assert [type(m).__name__ for m in (network[1], network[5])] == ["PReLU", "Tanh"]
    assert "the activation of the network's output is not replaced: 5" in caplog.text
    with pytest.raises(ValueError, match="activations=Snak: the network has no module of this class"):
        build("network.shared=unit", "network.activations=[Snak]")
    network = build("network.shared=unit", "network.activations=[MetaACON]")
    assert type(network[3]).__name__ == "PReLU"
