"""What a GPU needs, shown without one: nothing stays on the CPU, and no step makes the host wait.

A pretended ``cuda`` device of FakeTensorMode knows shapes and devices alone. It refuses operations on tensors of two
devices, and all that would read a value: ``item``, ``nonzero``, a boolean mask. Backward needs a real device, so that the reads
of whole steps are counted on the CPU.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import bench_loop
import pytest
import torch
from conftest import ACTIVATIONS, TASKS, config, make_factory, make_task, train
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from waits import Copies, Reads

from activations.base import Activation
from runners.device import find_device, own_device
from runners.optim import activation_modules
from runners.parallel import World
from runners.step import forward
from runners.train import build_network
from tasks.base import ActLayer, RunningMeans
from tasks.data import store, transfer
from tasks.data.augment import Compose, CropFlip, Cutout, RandomResizedCrop
from tasks.data.pairs import VOID
from tasks.data.resize import resize_boxes
from tasks.data.sets import ImageSet, MaskSet, SampleSet
from tasks.data.store import Memory
from tasks.images import ImageTask
from tasks.processes import Processes

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
SAMPLES = 20


# ---- a pretended device


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What went to the device through pinned memory, which a copy must do lest the host wait."""
    tensors: list[Tensor] = []
    monkeypatch.setattr(transfer, "_pinned", lambda tensor: tensors.append(tensor) or tensor)
    return tensors


def random_set(task: str) -> SampleSet | None:
    """Random samples of the size that the data of ``task`` have, which must be downloaded; None where they need not be."""
    data = config(f"task={task}").task.data
    if "root" not in data:
        return None
    masks = "masks" in data._target_ or task == "oxford_pets"
    side = data.get("stored") or (64 if masks else 32)
    size = list(data.get("size") or [160, 224]) if masks else [side, side]
    planes = 4 if masks else 1 if task == "fashion_mnist" else 3
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(0, 256, (SAMPLES, planes, *size), dtype=torch.uint8, generator=generator)
    facts = {"classes": tuple("abcdefghijkl"), "fingerprint": "random", "train": torch.arange(SAMPLES - 8)}
    if masks:
        samples[:, -1] %= 12
        return MaskSet(store=Memory(samples), val=None, test=torch.arange(SAMPLES - 8, SAMPLES), **facts)
    labels = torch.arange(SAMPLES) % 12
    return ImageSet(store=Memory(samples), labels=labels, test=torch.arange(SAMPLES - 8, SAMPLES), **facts)


@cache
def task_of(name: str) -> Any:
    """The task, with random samples where its data must be downloaded."""
    data = random_set(name)
    if data is None:
        return make_task(name)
    chosen = config(f"task={name}")
    settings = cast(dict[str, Any], OmegaConf.to_container(chosen.task, resolve=True)) | {"_partial_": True}
    del settings["data"]
    settings |= {
        size: None for size in ("train_size", "test_size") if size in settings
    }  # of the random samples all
    return instantiate(settings)(data=data, network=instantiate(chosen.network))


@contextmanager
def pretended(task: Any) -> Iterator[None]:
    """Let ``task`` deliver its batches to a device that there is not."""
    tensors = {name: value for name, value in vars(task).items() if isinstance(value, Tensor)}
    with FakeTensorMode(allow_non_fake_inputs=True):
        task.device = CUDA
        try:
            yield
        finally:
            task.device = CPU
            vars(task).update(tensors)  # scale and shift stay where they were sent
            if isinstance(task, ImageTask) and isinstance(task.store, Memory):
                task.store._on.clear()


def run_on_device(name: str, act_layer: ActLayer, sent: list[Tensor], *, evaluate: bool = True) -> None:
    """A step without its backward, and the evaluation of a split."""
    task = task_of(name)
    network = build_network(act_layer, task, 0)
    units = list(activation_modules(network).values())
    with pretended(task):
        network.to(CUDA)
        for phase in range(2):
            for unit in units:
                if hasattr(unit, "told_to_collect"):
                    unit.told_to_collect = phase == 0  # its statistics
            share = next(task.shares(torch.Generator()))
            assert share.inputs.device == share.target.device == CUDA
            means = RunningMeans()
            network.train()
            with Copies() as copies:
                step = forward(network, task, units, share, nullcontext())
                means.add(share.samples, **step.values(task, share))
            assert step.output.device == step.total.device == CUDA
            assert not copies.seen
            if phase == 0 and not any(hasattr(unit, "told_to_collect") for unit in units):
                break
        if not evaluate:
            return
        sent.clear()
        with Copies() as copies:
            for output, target in task.predictions(network, "val"):
                assert output.device == CUDA
                task.scalars(output, target)
                if hasattr(task, "counts"):
                    task.counts(output, target)
        assert set(copies.seen) <= {("cpu", "cuda")}
        resident = isinstance(task, ImageTask)  # its samples, once more
        assert copies.seen.total() <= len(sent) + resident


@pytest.mark.parametrize("name", TASKS)
def test_every_task_computes_on_a_device(name: str, sent: list[Tensor]) -> None:
    run_on_device(name, make_factory("relu"), sent)


@pytest.mark.parametrize("name", ["pwlu", "frelu", "ditac", "dyrelu"])
def test_units_with_statistics_penalties_and_networks_compute_in_a_network(
    name: str, sent: list[Tensor]
) -> None:
    run_on_device("digits", make_factory(name), sent, evaluate=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_activation_computes_in_the_network_of_every_task(name: str, sent: list[Tensor]) -> None:
    served = []
    for activation in ACTIVATIONS:
        try:
            run_on_device(name, make_factory(activation), sent, evaluate=False)
            served.append(activation)
        except ValueError as error:  # a unit of images alone
            if "input of shape" not in str(error):
                raise
    assert len(served) > 0.8 * len(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_computes_on_a_device(name: str) -> None:
    """By itself, for images, features, sequences and tokens; the first epoch is that of a long run."""
    served = 0
    for shape, dim in (((5, 6, 4, 4), 1), ((5, 6), 1), ((5, 6, 7), 1), ((5, 7, 6), -1)):
        unit = make_factory(name)(6, channel_dim=dim)
        unit.start_epoch(0, 100)
        with FakeTensorMode(allow_non_fake_inputs=True):
            unit.to(CUDA)
            with Copies() as copies:
                try:
                    for training in (True, False):
                        out = unit.train(training)(torch.randn(shape, device=CUDA))
                        assert out.device == CUDA
                    unit.regularization()
                    served += 1
                except ValueError as error:  # a unit need not serve every rank
                    if "input of shape" not in str(error):
                        raise
            assert not copies.seen
    assert served


def test_factorials_of_a_device_have_the_bits_of_the_cpus() -> None:
    for degree, dtype in ((1, torch.float32), (13, torch.float32), (13, torch.float64)):
        unit = make_factory("fourier", f"activation.degree={degree}")(4).to(dtype)
        expected = unit._weights()
        unit.a.data = unit.a.data.as_subclass(_Elsewhere)
        assert torch.equal(unit._weights().as_subclass(Tensor), expected)


def test_what_is_left_on_the_cpu_is_found(sent: list[Tensor]) -> None:
    class Left(Activation):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(self.num_features, 1, 1)

    class Reads(Activation):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.mean().item() > 0 else x

    with pytest.raises(RuntimeError, match="two devices"):
        run_on_device("digits", Left, sent)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        run_on_device("digits", Reads, sent)


# ---- augmentation


AUGMENTATIONS = {
    "shift": CropFlip(2),
    "cutout": Cutout(4, masks=1),
    "crop": RandomResizedCrop((9, 12), masks=1),
    "all": Compose(crop=RandomResizedCrop(12, masks=1), shift=CropFlip(2), cutout=Cutout(5, masks=1)),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_sends_its_draws_alone(name: str, sent: list[Tensor]) -> None:
    """The pixels stay on the device, and numbers are drawn on the CPU: one for each image, not for each pixel."""
    images = torch.zeros(30, 4, 16, 18, dtype=torch.uint8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = images.to(CUDA)
        with Copies() as copies:
            out = AUGMENTATIONS[name](images, torch.Generator())
        assert out.device == CUDA
        assert out.dtype == torch.uint8
        assert copies.seen == {("cpu", "cuda"): len(sent)}
        assert sum(tensor.numel() for tensor in sent) <= 30 * 10 + 1
    for step in AUGMENTATIONS["all"].steps.values():
        if isinstance(step, Cutout):
            step.fill = torch.tensor(step.fill.shape[0] * [128], dtype=torch.uint8).view(-1, 1, 1)
    AUGMENTATIONS["cutout"].fill = torch.full((1, 1, 1), 128, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(40, 48), (33, 57), (9, 70), (7, 7)])
@pytest.mark.parametrize("size", [(24, 24), (7, 30), (3, 5), (33, 57)])
def test_a_batch_of_boxes_is_resized_to_the_bits_of_torchs_cpu(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (70, 3, *shape), dtype=torch.uint8, generator=generator)
    images[:5] = 255
    sides = [(torch.rand(70, generator=generator) * side).long() + 1 for side in shape]
    sides[0][:9], sides[1][3:12] = shape[0], shape[1]
    corner = [
        (torch.rand(70, generator=generator) * (side - s + 1)).long()
        for side, s in zip(shape, sides, strict=True)
    ]
    boxes = torch.stack([*corner, *sides], 1)
    flips = torch.rand(70, 1, generator=generator) < 0.5
    out = resize_boxes(images, boxes, size, flips)
    for image, (top, left, h, w), flip, found in zip(images, boxes.tolist(), flips, out, strict=True):
        box = image[None, :, top : top + h, left : left + w]
        expected = F.interpolate(box, size, mode="bilinear", antialias=True)[0]
        assert torch.equal(found, expected.flip(2) if flip else expected)


def test_the_device_crops_as_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training crops and center crops with masks, by the operations that a GPU runs."""
    from tasks.data import augment

    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (20, 4, 40, 48), dtype=torch.uint8, generator=generator)
    crops = [
        lambda x: RandomResizedCrop((20, 24), masks=1)(x, torch.Generator().manual_seed(3)),
        augment.CenterCrop((20, 24), share=0.9, masks=1),
    ]
    expected = [crop(images) for crop in crops]
    elsewhere = images.as_subclass(_Elsewhere)
    for crop, result in zip(crops, expected, strict=True):
        assert torch.equal(crop(elsewhere).as_subclass(Tensor), result)


class _Elsewhere(Tensor):
    """Computes on the CPU and says that it is not there."""

    is_cpu = False


# ---- a set that does not fit


def test_a_set_is_kept_on_the_device_where_it_takes_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    for free, kept in ((2 * samples.nbytes, True), (2 * samples.nbytes - 1, False)):
        monkeypatch.setattr(store, "_free_memory", lambda device, free=free: free)
        with FakeTensorMode(allow_non_fake_inputs=True):
            memory = Memory(samples)
            assert (memory.on(CUDA) is not None) == kept
            assert memory.on(CUDA) is memory.on(CUDA)


def test_batches_are_copied_one_ahead_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what is asked of a GPU: the copy of the next batch is begun before the work on one is."""
    events: list[str] = []
    main = SimpleNamespace(wait_stream=lambda stream: events.append("wait"))

    @contextmanager
    def on_stream(stream: object) -> Iterator[None]:
        events.append("side stream")
        yield
        events.append("main stream")

    cuda = SimpleNamespace(Stream=lambda device: "side", stream=on_stream, current_stream=lambda device: main)
    monkeypatch.setattr(transfer.torch, "cuda", cuda)
    monkeypatch.setattr(transfer, "send", lambda batch, device: events.append(f"copy {batch.name}") or batch)

    def batches() -> Iterator[Any]:
        for name in "abc":
            yield SimpleNamespace(name=name, record_stream=lambda stream: events.append("keep"))

    events.extend(f"work {batch.name}" for batch in transfer.one_ahead(batches(), CUDA))
    copy = {name: ["side stream", f"copy {name}", "main stream"] for name in "abc"}
    assert events == [
        *copy["a"],
        *("wait", "keep", *copy["b"], "work a"),
        *("wait", "keep", *copy["c"], "work b"),
        *("wait", "keep", "work c"),
    ]
    assert not list(transfer.one_ahead(iter(()), CUDA))


# ---- reads


@pytest.mark.parametrize(
    ("task", "activation", "values"),
    [("digits", "prelu", 2), ("sines2d", "pwlu", 1), ("diabetes", "ditac", 2)],
)
def test_steps_read_nothing_between_the_checks(
    task: str, activation: str, values: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward, clipping, optimizer, metrics and a bar that would be drawn at every step."""
    from runners import train as runner

    class Bar(ExitStack):
        def update(self) -> bool:
            return True

        def set_postfix(self, *args: Any, **kwargs: Any) -> None:
            pass

    monkeypatch.setattr(runner, "CHECK_INTERVAL", 2)
    monkeypatch.setattr(runner, "waits_for", lambda device: True)
    monkeypatch.setattr(runner, "tqdm", lambda **settings: Bar())
    monkeypatch.setattr(
        runner.Train, "_end", lambda self, cell, *others: self._finish(cell, others[-1], "interrupted")
    )
    evaluate, counts = runner.Train._evaluate, []

    def evaluate_apart(*args: Any, **kwargs: Any) -> dict[str, float]:
        before = reads.count
        scores = evaluate(*args, **kwargs)
        reads.count = before
        return scores

    monkeypatch.setattr(runner.Train, "_evaluate", evaluate_apart)
    for steps in (2, 6):
        with Reads() as reads:
            train(
                tmp_path / str(steps),
                make_factory(activation),
                *("runner.epochs=2", f"runner.limit_batches={steps}", "runner.pictures=false"),
                *("task.recipe.clip_norm=1.0", "task.recipe.batch_size=4"),
                task=task,
            )
        counts.append(reads.count)
    # two checks more in each of two epochs: whether the loss is finite, and the values that the bar shows
    assert counts[1] - counts[0] == 2 * 2 * (1 + values)


# ---- which device


def test_processes_and_workers_are_dealt_to_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    name = "multiprocessing.current_process"
    for worker, card in (
        ("MainProcess", 0),
        ("LokyProcess-1", 0),
        ("LokyProcess-2", 1),
        ("LokyProcess-5", 0),
    ):
        monkeypatch.setattr(f"runners.device.{name}", lambda worker=worker: SimpleNamespace(name=worker))
        assert own_device("auto", World()) == torch.device("cuda", card)
        assert own_device("cuda:1", World()) == torch.device("cuda", 1)
    assert own_device("cuda", World(3, 4, local=1)) == torch.device("cuda", 1)
    assert own_device("cpu", World(3, 4, local=1)) == CPU
    assert chosen[-1] == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="more processes on this machine than its 2 GPUs"):
        own_device("auto", World(2, 4, local=2))
    with pytest.raises(ValueError, match=r"device=cuda:1: must be auto, cuda or cpu, as torchrun"):
        own_device("cuda:1", World(0, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(
        ValueError, match=r"^device=cuda: must be one of auto, cpu on this machine, as torch "
    ):
        find_device("cuda")
    assert instantiate(config("task=digits").runner).device == "auto"
    with pytest.raises(Exception, match="device=cuda"):
        instantiate(config("task=digits", "runner=gpu").runner)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_loop.py", "--device", "cuda"])
    with pytest.raises(SystemExit, match="2"):
        bench_loop.main()
    assert "device=cuda: must be one of auto, cpu" in capsys.readouterr().err.splitlines()[-1]


def test_a_gpu_waits_where_no_stream_works() -> None:
    """Of 0 to 20 the spans leave 5 to 8 and 12 to 14."""
    spans = [(14.0, 20.0), (0.0, 4.0), (3.0, 5.0), (8.0, 12.0), (9.0, 10.0)]
    assert bench_loop.idle_share(spans) == pytest.approx(5 / 20)
    assert bench_loop.idle_share([(1.0, 2.0)]) == 0


# ---- parts of a batch


def test_parts_of_a_loss_and_of_means_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processes: the parts of three, one after the other, against the whole; with void pixels and augmentation."""
    task = make_task("shapes_small")
    samples = task.store.samples[task.index["train"]]
    samples[::3, -1, :9] = VOID
    task.store.samples[task.index["train"]] = samples
    whole = next(task.shares(torch.Generator().manual_seed(0)))
    terms = task.terms(whole.target)
    monkeypatch.setattr(
        Processes, "total", lambda self, values: {"terms": terms} if "terms" in values else dict(values)
    )
    network = build_network(make_factory("relu"), task, 0).eval()
    step = forward(network, task, (), whole, nullcontext())
    means = RunningMeans()
    means.add(whole.samples, **step.values(task, whole))
    total, sums = torch.zeros(()), Counter()
    for rank in range(3):
        task.processes = Processes(rank, 3)
        share = next(task.shares(torch.Generator().manual_seed(0)))
        assert torch.equal(share.inputs, whole.inputs[task.processes.part(whole.samples)])
        part = forward(network, task, (), share, nullcontext())
        total += part.total / 3
        sums.update({name: value.item() for name, value in part.values(task, share).items()})
    torch.testing.assert_close(total, step.total)
    assert dict(sums) == pytest.approx(means.result(), rel=1e-5)


def test_a_batch_norm_alone_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one process the sums over all are its own: values, gradients and running statistics are torch's."""
    from runners import batch_norm
    from runners.batch_norm import share_statistics

    monkeypatch.setattr(batch_norm.distributed, "all_reduce", lambda sums: None)
    for norm, shape in ((nn.BatchNorm2d(3), (4, 3, 5, 2)), (nn.BatchNorm1d(3, affine=False), (6, 3))):
        torch.manual_seed(0)
        if norm.affine:
            nn.init.uniform_(norm.weight)
            nn.init.uniform_(norm.bias)
        norm = norm.double()
        shared = type(norm)(3, affine=norm.affine).double()
        shared.load_state_dict(norm.state_dict())
        share_statistics(shared, synchronized=True)
        x, g = (torch.randn(shape, dtype=torch.float64) * 3 + 2 for _ in range(2))
        results = []
        for module in (norm, shared):
            y = module(x.requires_grad_())
            results.append((y, *torch.autograd.grad(y, [x, *module.parameters()], g), *module.buffers()))
        torch.testing.assert_close(*results)
        norm.eval(), shared.eval()
        assert torch.equal(norm(x), norm(x))
        torch.testing.assert_close(shared(x), norm(x))
