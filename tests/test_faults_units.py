"""Units in the hands of torch's tools: averages, functional calls, traces, hooks, several processes, resets."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, draw, make_factory, make_task
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, update_bn
from torchvision.models.feature_extraction import create_feature_extractor

from activations.base import Activation
from activations.frelu import BatchNorm2d
from activations.gct import GCT
from activations.kernels import library
from activations.torch_nn import ReLU, TorchActivation
from runners.optim import sites

CHANNELS = 6
IMAGES = (3, CHANNELS, 5, 4)
NORMED = ["frelu", "frelu_light", "dwconv_relu"]


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def images(samples: int = 3, seed: int = 0) -> Tensor:
    return draw(samples, *IMAGES[1:], seed=seed).float()


def make(name: str, seed: int = 0, **values: Any) -> Activation:
    torch.manual_seed(seed)
    return make_factory(*name.split())(CHANNELS, **values)


def in_statistics(name: str) -> Activation:
    """A unit in its first phase, if it has one, after a batch."""
    unit = make(name)
    unit.start_epoch(0, 100)
    unit(images())
    return unit


def learned(name: str) -> Activation:
    """The same when phases are over, and parameters and statistics are others than at the start."""
    unit = in_statistics(name)
    unit.start_epoch(50, 100)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    unit(images(seed=1))
    return unit


STAGES: list[Callable[[str], Activation]] = [in_statistics, learned]


# ---- one place for state


def test_buffers_can_be_averaged(name: str) -> None:
    counts = {key for key, _ in make(name).named_buffers() if key.endswith("num_batches_tracked")}
    for key, buffer in make(name).named_buffers():
        assert buffer.is_floating_point() or key in counts, key


def test_an_average_of_networks_is_the_unit_of_the_averaged_state(name: str) -> None:
    unit, late, x = in_statistics(name), learned(name), images(seed=2)
    if not unit.state_dict():
        pytest.skip("has no state to average")
    for use_buffers in (False, True):
        averaged = AveragedModel(unit, use_buffers=use_buffers).eval()
        averaged.update_parameters(unit)
        assert torch.equal(averaged(x), copy.deepcopy(unit).eval()(x))
        for _ in range(2):  # two of three are learned ones
            averaged.update_parameters(late)
        for mean, one, two in zip(
            averaged.module.parameters(), unit.parameters(), late.parameters(), strict=True
        ):
            torch.testing.assert_close(mean, (one + 2 * two) / 3)
        if not use_buffers:
            assert all(map(torch.equal, averaged.module.buffers(), late.buffers()))
        expected = make(name).eval()
        expected.load_state_dict(averaged.module.state_dict())
        assert expected.phase == averaged.module.phase == late.phase
        assert torch.equal(averaged(x), expected(x))


def test_moving_averages_follow_the_phase(name: str) -> None:
    """timm's two kinds, made before anything was known, and torch's own."""
    ema = pytest.importorskip("timm.utils.model_ema")
    if not make(name).state_dict():
        pytest.skip("has no state to average")
    for stage in STAGES:
        unit, x = stage(name).eval(), images(seed=2)
        averaged = AveragedModel(make(name), avg_fn=get_ema_avg_fn(0.25), use_buffers=True)
        kinds = [ema.ModelEmaV2(make(name), decay=0.25)]
        kinds += [ema.ModelEmaV3(make(name), decay=0.25, foreach=foreach) for foreach in (True, False)]
        for _ in range(20):  # 2^-40 of the beginning is left
            averaged.update_parameters(unit)
            for kind in kinds:
                kind.update(unit)
        for kind in (averaged, *kinds):
            assert kind.module.phase == unit.phase
            torch.testing.assert_close(kind.module.eval()(x), unit(x), atol=1e-4, rtol=1e-4)


def test_a_functional_call_follows_the_state_that_it_is_given(name: str) -> None:
    x = images(seed=2)
    for own, foreign in product(STAGES, STAGES):
        unit, other = own(name).eval(), foreign(name).eval()
        before = unit(x)
        for given, expected in ((other, other(x)), (unit, before)):
            state = dict(given.named_parameters()) | dict(given.named_buffers())
            assert torch.equal(torch.func.functional_call(unit, state, x), expected)
        assert torch.equal(unit(x), before)


def test_a_loaded_or_copied_unit_is_the_other(name: str) -> None:
    x = images(seed=2)
    for own, foreign, assign in product(STAGES, STAGES, (False, True)):
        unit, other = own(name), foreign(name)
        copied = copy.deepcopy(other)
        unit.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        assert unit.phase == copied.phase == other.phase
        expected = other(x), copy.deepcopy(other).eval()(x)  # the first in training, which changes statistics
        for one in (unit, copied):
            assert torch.equal(one(x), expected[0])
            assert torch.equal(one.eval()(x), expected[1])


def test_the_phase_of_an_older_checkpoint_is_read() -> None:
    unit, other, x = in_statistics("pwlu"), make("pwlu"), images(seed=2)
    state = unit.state_dict()
    state["collecting"] = state["collecting"].bool()  # as it was written before version 0.2
    for assign in (False, True):
        other.load_state_dict(state, assign=assign)
        assert other.phase == "statistics"
        assert torch.equal(other(x), x.relu())


@pytest.mark.parametrize("per_channel", [False, True])
def test_pwlu_where_python_may_not_look_is_the_same(per_channel: bool, monkeypatch) -> None:
    """As on a GPU: the function of either phase, its gradients, and the statistics."""
    results = []
    for readable in (library.readable, lambda value: False):
        monkeypatch.setattr(library, "readable", readable)
        unit = make(f"pwlu activation.per_channel={per_channel}")
        seen: list[Any] = []
        for epoch in (0, 50):
            unit.start_epoch(epoch, 100)
            for training in (True, False):
                x = 2 * images(seed=epoch + training)
                x.view(-1)[:9] = 0  # where ReLU has its kink
                unit.zero_grad()
                y = unit.train(training)(x.requires_grad_())
                y.square().sum().backward()
                seen += [y, x.grad, *(b.clone() for b in unit.buffers())]
                if epoch:
                    seen.append(unit.curve.grad)
                elif training:
                    assert unit.curve.grad is None  # an optimizer makes no state of None
        results.append(seen)
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, atol=0, rtol=0)


def test_pwlu_compiled_in_one_graph_follows_its_phases_and_its_copies_theirs() -> None:
    unit, twin = make("pwlu"), make("pwlu")
    torch._dynamo.reset()
    compiled = torch.compile(unit, fullgraph=True, backend="eager")
    for epoch in (0, 50):
        for one in (unit, twin):
            one.start_epoch(epoch, 100)
        for seed in range(2):
            x = images(seed=seed)
            torch.testing.assert_close(compiled(x), twin(x))
        for buffer, same in zip(unit.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(buffer, same)
        torch.testing.assert_close(unit.curve, twin.curve)
    unit.eval()
    for phase in (1.0, 0.0):  # as an average sets it, without a word to Python
        unit.collecting.fill_(phase)
        assert torch.equal(compiled(images()), images().relu()) == bool(phase) == (unit.phase == "statistics")
        with torch.no_grad():
            unit.curve[:, 2:-2] += 1


def test_pwlu_maps_over_units_of_different_phases() -> None:
    units = [in_statistics("pwlu").eval(), learned("pwlu").eval()]
    state, x = torch.func.stack_module_state(units), images(seed=2)
    together = torch.func.vmap(lambda *state: torch.func.functional_call(units[0], state, (x,)))(*state)
    torch.testing.assert_close(together, torch.stack([unit(x) for unit in units]))


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


class Thrice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_pwlu_realigns_a_parametrised_or_pruned_curve() -> None:
    plain, parametrised, pruned = (make("pwlu") for _ in range(3))
    parametrize.register_parametrization(parametrised, "curve", Twice())
    prune.random_unstructured(pruned, "curve", 0.5)
    held = parametrised.parametrizations.curve.original, pruned.curve_orig
    for unit in (plain, parametrised, pruned):
        unit.start_epoch(0, 100)
        unit(5 + 2 * images())
        unit.start_epoch(50, 100)
    assert plain.left > -3
    assert torch.equal(parametrised.curve, plain.curve)
    assert torch.equal(held[0], plain.curve / 2)
    assert torch.equal(held[1], plain.curve)
    assert torch.equal(pruned.curve, plain.curve * pruned.curve_mask)
    assert torch.equal(parametrised(images()), plain(images()))


def test_pwlu_says_so_where_its_curve_cannot_be_set() -> None:
    unit = make("pwlu")
    parametrize.register_parametrization(unit, "curve", Thrice())
    unit.start_epoch(0, 100)
    with pytest.raises(
        ValueError, match=r"^\S*PWLU\.curve cannot be set: its parametrization Thrice has no \S+$"
    ):
        unit.start_epoch(50, 100)
    assert unit.phase == "statistics"
    unit = make("pwlu")
    curve = unit.curve.detach().clone()
    del unit.curve
    unit.curve = curve
    with pytest.raises(ValueError, match=r"^PWLU\.curve cannot be set: .*$"):
        unit.reset_parameters()


# ---- statistics of batch norms


def as_torch_has_it(unit: Activation) -> Activation:
    """The unit with torch's own norms."""
    unit = copy.deepcopy(unit)
    for key, child in list(unit.named_children()):
        if isinstance(child, BatchNorm2d):
            norm = nn.BatchNorm2d(CHANNELS, momentum=child.momentum)
            norm.load_state_dict(child.state_dict())
            setattr(unit, key, norm.train(child.training))
    return unit


@pytest.mark.parametrize("name", NORMED)
def test_update_bn_leaves_the_mean_over_all_batches(name: str) -> None:
    unit = learned(name)
    other = as_torch_has_it(unit)
    batches = [(1 + seed) * images(4, seed) for seed in range(3)]
    for one in (unit, other):
        update_bn(batches, one)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(unit.state_dict()[key], value)
    kept = copy.deepcopy(unit.state_dict())
    spoilt = images()
    spoilt[1, 2, 3, 1] = float("nan")
    update_bn([spoilt, *batches[:2], spoilt, batches[2]], unit)
    for key, value in kept.items():
        torch.testing.assert_close(unit.state_dict()[key], value)


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("how", ["from the start", "later", "none", "no count"])
@pytest.mark.parametrize("training", [False, True])
def test_norms_without_running_statistics_are_torchs(name: str, how: str, training: bool) -> None:
    unit = learned(name).train(training)
    other = as_torch_has_it(unit)
    for one in (unit, other):
        for key, norm in list(one.named_children()):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            if how == "from the start":
                setattr(one, key, type(norm)(CHANNELS, track_running_stats=False).train(training))
            elif how == "later":
                norm.track_running_stats = False
            elif how == "none":
                norm.running_mean = norm.running_var = None
            else:
                norm.num_batches_tracked = None
    torch.testing.assert_close(unit(images()), other(images()))
    assert unit.state_dict().keys() == other.state_dict().keys()
    for key, value in other.state_dict().items():
        torch.testing.assert_close(unit.state_dict()[key], value)


@pytest.mark.parametrize("name", NORMED)
def test_synchronised_norms_are_the_same_function(name: str) -> None:
    unit = learned(name)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(unit))
    assert any(isinstance(child, nn.SyncBatchNorm) for child in other.children())
    for training in (True, False):
        torch.testing.assert_close(other.train(training)(images()), unit.train(training)(images()))


# ---- traces


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of sizes of parameters, which do not change
def test_a_trace_serves_any_batch(name: str) -> None:
    unit = learned(name).eval()
    traced = torch.jit.trace(unit, images(2), check_trace=False)
    torch.testing.assert_close(traced(images(5)), unit(images(5)))


def test_a_unit_is_one_node_for_torch_fx(name: str) -> None:
    network = make_task("digits").build_network(make_factory(name)).eval()
    units = sites(network)
    x = torch.randn(2, 1, 8, 8)
    traced = fx.symbolic_trace(network)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert [target for target in called if target in units] == list(units)
    assert torch.equal(traced(x), network(x))
    site = list(units)[1]
    seen: list[Tensor] = []
    units[site].register_forward_hook(lambda module, args, output: seen.append(output))
    expected = network(x)
    features = create_feature_extractor(network, {site: "there"})(x)["there"]
    assert torch.equal(features, seen[0])
    assert expected.shape == (2, 10)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_script_serves_the_adapters_and_refuses_the_rest_in_one_line(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), make(name))
    if isinstance(network[1], TorchActivation):
        scripted = torch.jit.script(network)
        torch.testing.assert_close(scripted(images()), network(images()))
    else:
        line = rf"^torch\.jit\.script cannot compile {type(network[1]).__name__}; [^\n]+$"
        with pytest.raises(ValueError, match=line):
            torch.jit.script(network)


def nodes(root: Any) -> Iterator[Any]:
    """The nodes of a graph for the gradient."""
    seen, left = set(), [root]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [below for below, _ in node.next_functions]
            yield node


def test_nodes_of_the_graph_keep_what_torch_gives_them(name: str) -> None:
    y = make(name)(images().requires_grad_())
    torchs = set(dir(torch.autograd.function.BackwardCFunction))
    for node in nodes(y.grad_fn):
        assert isinstance(node.name(), str)
        assert not torchs & vars(node).keys() if hasattr(node, "__dict__") else True


@pytest.mark.slow
def test_onnx_serves_any_batch(name: str, tmp_path: Path) -> None:
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    unit, path = learned(name).eval(), str(tmp_path / "unit.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(unit, (images(2),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: images(5).numpy()})
    torch.testing.assert_close(torch.from_numpy(y), unit(images(5)).detach(), atol=1e-4, rtol=1e-4)


# ---- hooks


def calls_of(unit: Activation, hook: str, module: nn.Module | None) -> Counter[str]:
    """How often the unit's parts were seen by hooks on ``module`` alone, or global ones, in forward and backward."""
    names, seen = {part: key for key, part in unit.named_modules()}, Counter[str]()

    def note(part: nn.Module, *args: Any) -> None:
        seen[names[part]] += 1

    where: Any = torch.nn.modules.module if module is None else module
    hook = hook.replace("register_", "register_module_") if module is None else hook
    handle = getattr(where, hook)(note)
    try:
        unit(images().requires_grad_()).sum().backward()
    finally:
        handle.remove()
    return seen


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


def test_hooks_on_parts_of_a_unit_fire(name: str) -> None:
    unit = make(name)
    for module, hook in product([None, *list(unit.modules())[1:]], HOOKS):
        with library.using("reference"):
            expected = calls_of(unit, hook, module)
        assert calls_of(unit, hook, module) == expected != Counter()


def test_a_forward_given_to_a_part_is_called() -> None:
    unit, gated = GCT(CHANNELS, base=ReLU), make("se_relu")
    unit.base.forward = lambda x: x + 1
    torch.testing.assert_close(unit(images()), images() + 1)
    gated.fc2.forward = lambda x: torch.full((len(x), CHANNELS), 100.0)
    assert torch.equal(gated(images()), images().relu())
    unit = GCT(CHANNELS, base=ReLU)
    unit.base.function.forward = lambda x: x - 1
    torch.testing.assert_close(unit(images()), images() - 1)


# ---- several processes


def test_several_processes_come_to_the_curve_of_one_that_saw_all(tmp_path: Path) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    import ranks

    context = torch.multiprocessing.start_processes(
        ranks.train_together, (str(tmp_path),), nprocs=len(ranks.PARTS), join=False, start_method="forkserver"
    )
    expected = {per_channel: ranks.alone(per_channel) for per_channel in (False, True)}
    try:
        while not context.join(timeout=150):  # returns when one has ended
            assert all(process.exitcode is not None or process.is_alive() for process in context.processes)
    finally:
        for process in context.processes:
            process.kill()
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(ranks.PARTS))]
    for (per_channel, find_unused), state in states[0].items():
        assert state["1.batches"].eq(ranks.STEPS).all()
        for key, value in state.items():
            assert torch.equal(value, states[1][per_channel, find_unused][key]), key
            torch.testing.assert_close(value, expected[per_channel][key], atol=1e-6, rtol=1e-6)


# ---- resets and constructors


def same(unit: nn.Module, other: nn.Module) -> bool:
    one, two = unit.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_reset_parameters_draws_what_the_constructor_draws(name: str) -> None:
    fresh, unit = make(name, seed=7), learned(name)
    held = {key: id(parameter) for key, parameter in unit.named_parameters()}
    torch.manual_seed(7)
    unit.reset_parameters()
    after = torch.rand(3)
    assert same(unit, fresh)
    assert unit.phase == fresh.phase
    assert held == {key: id(parameter) for key, parameter in unit.named_parameters()}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in unit.parameters())
    make(name, seed=7)
    assert torch.equal(torch.rand(3), after)  # no number more, none less
    assert torch.equal(unit.eval()(images()), fresh.eval()(images()))


def test_a_network_resets_its_units(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), learned(name))
    before = copy.deepcopy(network)
    network.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    assert any(True for _ in before[1].parameters()) <= (not same(network[1], before[1]))
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), make(name))
    network.to_empty(device="cpu").apply(
        lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None
    )
    torch.manual_seed(0)
    network[1].reset_parameters()
    assert same(network[1], make(name))


def test_a_unit_that_does_not_say_how_it_starts_is_not_reset_silently() -> None:
    class Gain(Activation):
        def __init__(self, num_features: int) -> None:
            super().__init__(num_features)
            self.gain = nn.Parameter(torch.ones(num_features))

    with pytest.raises(NotImplementedError, match=r"^Gain defines no reset_parameters\(\)$"):
        Gain(CHANNELS).reset_parameters()


def test_integers_of_other_libraries_are_numbers_of_channels(name: str) -> None:
    factory, plain = make_factory(name), make(name)
    for dtype in (np.int64, np.uint8, torch.tensor):
        torch.manual_seed(0)
        made = factory(dtype(CHANNELS), channel_dim=dtype(1))
        assert type(made.num_features) is type(made.channel_dim) is int
        assert same(made, plain)
        assert repr(made) == repr(plain)


def test_what_is_no_integer_is_refused(name: str) -> None:
    for value, argument in product((True, False, np.True_, 1.0, "1", None), ("num_features", "channel_dim")):
        values = {"num_features": CHANNELS, "channel_dim": 1} | {argument: value}
        with pytest.raises(ValueError, match=rf"^{argument}=[^\n]+$"):
            make_factory(name)(values.pop("num_features"), **values)
