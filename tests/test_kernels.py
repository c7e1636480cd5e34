"""The library of fused kernels: the rule by which they or the reference are used, threads and processes, tables, builds."""

import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import forked
import pytest
import test_fused
import torch
from conftest import CPU_MODES, PROCESS, ROOT
from fused import FULL, compare, draw, is_fused, make, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from activations.ditac import DiTAC
from activations.kernels import build, library
from activations.kernels.tabulated import warped
from activations.prelu import PReLU
from activations.pwlu import PWLU
from activations.swish import MIN_FUSED, Swish

if not library.described().startswith("fused"):
    pytest.skip(library.described(), allow_module_level=True)


@pytest.mark.parametrize("size", [MIN_FUSED - 1, MIN_FUSED])
def test_swish_of_beta_one_is_fused_where_elements_are_many(size: int) -> None:
    x = torch.linspace(-20, 20, size).view(1, size)
    y = Swish(size)(x.requires_grad_())
    assert is_fused(y) == (size == MIN_FUSED)
    compare(Swish(size), x, draw(x.shape, torch.float32))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 15, 17, 30, 31, 62, 63, 100, 1023, 4096])
@pytest.mark.parametrize("layout", FULL)
def test_tables_of_any_size(segments: int, per_channel: bool, layout: str) -> None:
    unit = make("pwlu per channel" if per_channel else "pwlu", 5, segments=segments)
    for dtype in (torch.float64, torch.float32):
        x, g = (draw((3, 5, 21, 19), dtype, layout, seed) for seed in range(2))
        compare(unit.to(dtype), 2 * x, g)


@pytest.mark.parametrize("size", [2, 3, 17, 65, 256, 4096])
def test_ditac_with_tables_of_any_size(size: int) -> None:
    torch.manual_seed(0)
    unit = DiTAC(4, table_size=size).double()
    x = torch.cat(
        [2 * torch.randn(300, 4), torch.tensor([[-0.5, 2.0, -6.0, 6.0], [-7.0, 7.0, 0.0, 1e4]])]
    ).double()
    compare(unit, x, draw(x.shape))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_flow_between_any_ends(data: st.DataObject) -> None:
    """Values and gradients of T at points from end to end, the ends' own included."""
    cells, points = data.draw(st.integers(2, 20)), data.draw(st.integers(2, 300))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    scale = data.draw(st.sampled_from([0.0, 1e-9, 0.03, 0.3, 1.0, 3.0]))
    ends = torch.tensor(data.draw(st.sampled_from([(0.0, 1.0), (-0.3, 1.7), (0.21, 0.83), (-2.0, 1.0)])))
    velocity = scale * torch.randn(cells + 1, generator=generator, dtype=torch.float64)
    g = torch.randn(points, generator=generator, dtype=torch.float64)
    inputs = [ends.double().requires_grad_(), velocity.requires_grad_()]
    found = {}
    for mode in CPU_MODES:
        with library.using(mode):
            heights = warped(*inputs, points)
            found[mode] = heights, *torch.autograd.grad(heights, inputs, g)
    for got, expected in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8 * max(1, expected.abs().max().item()))
    largest = found["auto"][0].abs().max().item()
    if largest < torch.finfo(torch.float32).max:
        single = warped(*(value.detach().float() for value in inputs), points)
        torch.testing.assert_close(single.double(), found["auto"][0], rtol=0, atol=1e-5 * (1 + largest))


def test_the_flow_can_be_differentiated_twice() -> None:
    ends, velocity = torch.tensor([-0.1, 1.2]).double(), 0.3 * torch.linspace(-1, 1.4, 6).double().sin()
    inputs = ends.requires_grad_(), velocity.requires_grad_()
    torch.autograd.gradgradcheck(lambda *given: warped(*given, 7), inputs)


@pytest.mark.parametrize("value", [1e38, -1e38, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("layout", FULL)
@pytest.mark.parametrize("name", ["pwlu", "pwlu per channel", "pwlu of 100", "ditac", "ditac of z"])
def test_parameters_beyond_all_bounds_are_no_fault_of_memory(name: str, layout: str, value: float) -> None:
    """A run that diverges must end with NaN: wherever the reference is NaN the kernel is, and nothing crashes."""
    hyper = {"segments": 100} if name == "pwlu of 100" else {}
    x = draw((3, 20, 9, 9), torch.float32, layout)
    for at in range(-2, 4):
        unit = make(name.removesuffix(" of 100"), 20, torch.float32, **hyper)
        (parameter,) = unit.parameters()
        with torch.no_grad():
            parameter.view(-1)[at] = value
        y = run(unit, x, torch.ones_like(x))["y"]
        assert y.shape == x.shape
        with library.using("reference"):
            expected = unit(x)
        if math.isnan(value):
            assert y[expected.isnan()].isnan().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_several_callers_at_once(threads: int) -> None:
    torch.set_num_threads(threads)
    units = [
        make(name, 8, torch.float32) for name in ("pwlu", "ditac", "swish per channel", "pwlu per channel")
    ]
    inputs = [draw((32, 8, 20, 20), torch.float32, seed=seed) for seed in range(len(units))]
    expected = [run(unit, x, x) for unit, x in zip(units, inputs, strict=True)]

    def work(i: int) -> bool:
        torch.set_num_threads(threads)
        found = [run(units[i], inputs[i], inputs[i]) for _ in range(20)]
        return all(torch.equal(one[key], expected[i][key]) for one in found for key in one)

    with ThreadPoolExecutor(len(units)) as pool:
        assert all(pool.map(work, range(len(units))))


def test_the_child_of_a_fork_computes_alone(tmp_path) -> None:
    """torch's threads do not come along; a parallel loop of its own would hang there."""
    code = """
import os, sys, torch
from activations.pwlu import PWLU
torch.set_num_threads(2)
x = torch.randn(64, 8, 32, 32)
unit = PWLU(8)
def total():
    unit.zero_grad()
    unit(x).sum().item()
    unit(x).backward(x)
    return unit.curve.grad.clone()
before = total()
child = os.fork()
if child == 0:
    from activations.kernels import library
    y = torch.empty_like(x)
    forward = library.kernels("pwlu", x.dtype)[0]
    forward(1, 1, x.numel(), 2, x.data_ptr(), y.data_ptr(), unit.curve.data_ptr(), 16, 1e-6)
    os._exit(0 if library.described().startswith("fused") else 3)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or not torch.allclose(before, total()))
"""
    (tmp_path / "script.py").write_text(code)
    environment = PROCESS["env"] | {"PYTHONPATH": str(ROOT)}
    done = forked.Script([tmp_path / "script.py"], cwd=ROOT, env=environment).finish(timeout=60)
    assert done.returncode == 0, done.stderr


class _Samples:
    def __init__(self) -> None:
        self.unit = PWLU(8)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return self.unit(torch.full((8, 64, 64), float(i))[None])[0]


# python 3.12 warns of any fork beside threads
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_works_in_the_workers_of_a_data_loader() -> None:
    samples = _Samples()
    samples.unit(torch.randn(32, 8, 32, 32))
    for i, batch in enumerate(DataLoader(samples, num_workers=2)):  # type: ignore[arg-type, var-annotated]
        torch.testing.assert_close(batch, samples[i][None])


def fused_calls(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often ``work`` went to a fused kernel."""
    count = 0
    original = library.fusable

    def note(*args: Tensor) -> bool:
        nonlocal count
        found = original(*args)
        count += found
        return found

    with monkeypatch.context() as patch:
        patch.setattr(library, "fusable", note)
        work()
    return count


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own
def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = PReLU(6)
    x = torch.randn(4, 6, 5)

    def calls(work: Callable[[], object]) -> int:
        return fused_calls(work, monkeypatch)

    assert calls(lambda: unit(x)) == 1
    assert calls(lambda: unit(x[..., ::2])) == 1
    assert calls(lambda: unit.double()(x.double())) == 1
    unit.float()
    assert calls(lambda: unit(x.half())) == 0
    assert calls(lambda: unit(x[:0])) == 0
    assert calls(lambda: torch.func.vmap(unit)(x[:, None])) == 0
    assert calls(lambda: torch.func.grad(lambda x: unit(x).sum())(x)) == 0
    assert calls(lambda: torch.func.jvp(unit, (x,), (x,))) == 0
    assert calls(lambda: torch.export.export(unit, (x,))) == 0
    assert calls(lambda: unit.to("meta")(x.to("meta"))) == 0
    with library.using("reference"):
        assert calls(lambda: PReLU(6)(x)) == 0
        with library.using("auto"):
            assert calls(lambda: PReLU(6)(x)) == 1
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert calls(lambda: PReLU(6)(torch.randn(4, 6, 5))) == 0


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
def test_tracing_sees_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, x = PReLU(6), torch.randn(4, 6, 5)
    assert fused_calls(lambda: torch.jit.trace(unit, x, check_trace=False), monkeypatch) == 0


def test_a_thread_that_forces_nothing_is_told_too() -> None:
    """The switch is the process's, as torch's flags are."""
    said = []
    with library.using("reference"):
        thread = threading.Thread(target=lambda: said.append(library.described()))
        thread.start()
        thread.join()
    assert said == ["reference (asked for)"]


def test_refuses_an_unknown_mode() -> None:
    with (
        pytest.raises(ValueError, match="kernels='fast': must be one of auto, reference"),
        library.using("fast"),
    ):
        pass


def test_the_environment_switches(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from activations.kernels import library; print(library.described())")
    environment = PROCESS["env"] | {"PYTHONPATH": str(ROOT)}
    for value, expected in (("reference", "reference (asked for)"), ("auto", "fused")):
        done = forked.run([script], cwd=ROOT, env=environment | {"ACTBENCH_KERNELS": value})
        assert done.stdout.startswith(expected), done.stderr
    command = ["run.py", "runner=smoke", f"outputs={tmp_path}"]
    done = forked.run(command, cwd=ROOT, env=environment | {"ACTBENCH_KERNELS": "fast"})
    assert done.returncode == 1
    assert done.stderr == "actbench: ACTBENCH_KERNELS='fast': must be one of auto, reference, triton\n"


def test_everything_works_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, x = make("pwlu"), draw()
    expected = run(unit, x, torch.ones_like(x))
    monkeypatch.setattr(library, "_library", None)
    monkeypatch.setattr(library, "_about", "fused_avx2.so was not built")
    assert not library.available()
    assert library.described() == "reference (fused_avx2.so was not built)"
    found = run(unit, x, torch.ones_like(x))
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])


@pytest.mark.skipif(not (ROOT / "activations/kernels/fused_avx2.so").exists(), reason="no x86 machine")
@pytest.mark.skipif(library.described() != "fused avx512", reason="this processor uses it anyway")
@pytest.mark.parametrize("name", ["pwlu", "pwlu per channel", "pelu", "sine", "gct", "frelu", "golu", "serf"])
def test_the_variant_for_older_processors_is_the_reference(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where its registers are half as wide."""
    monkeypatch.setattr(library, "_variant", lambda: "avx2")
    loaded, about = library._load()
    assert about == "avx2"
    with monkeypatch.context() as patch:
        patch.setattr(library, "_library", loaded)
        patch.setattr(library, "_about", about)
        forget_functions()
        test_fused.test_is_the_reference(name, torch.float32)
    forget_functions()


def forget_functions() -> None:
    for function in (library.kernel, library.kernels):
        function.cache_clear()


@pytest.mark.slow
def test_the_variant_for_older_processors_passes_as_well() -> None:
    """torch's own switch: values, tables and kinks."""
    select = "is_the_reference or tables or at_kinks or near_zero"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    files = [f"tests/test_{name}.py" for name in ("fused", "kernels", "faults_kernels")]
    environment = PROCESS["env"] | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([*command, "-k", select, *files], **PROCESS | {"env": environment})
    assert done.returncode == 0, done.stdout[-3000:]


def test_what_can_be_built_where() -> None:
    assert set(build.variants("x86_64", "Linux")) == {"avx2", "avx512"}
    assert set(build.variants("arm64", "Darwin")) == {"neon"}
    assert build.variants("riscv64", "Linux") == build.variants("AMD64", "Windows") == {}


def test_the_build_fails_loudly_without_its_compiler(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(subprocess.CalledProcessError):
        build.build(tmp_path)
    assert not list(tmp_path.glob("*.so"))
    # what is newer than its sources needs none
    names = {f"fused_{name}.so" for name in build.variants(platform.machine(), platform.system())}
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in build.build(tmp_path)} == names
    for path in tmp_path.glob("*.so"):
        os.utime(path, (0, 0))
    with pytest.raises(subprocess.CalledProcessError):
        build.build(tmp_path)


def test_compiled_units_use_the_reference_without_graph_breaks() -> None:
    unit, x = nn.Sequential(PWLU(6), DiTAC(6)), torch.randn(4, 6, 5)
    compiled = torch.compile(unit, fullgraph=True, backend="eager")
    with library.using("reference"):
        expected = unit(x)
    torch.testing.assert_close(compiled(x), expected)
