"""The benchmark of the activations, on two of them at its smallest size."""

import csv
from pathlib import Path
from typing import Any

import bench_activations
import bench_gpu
import pytest
import torch
from torch import nn

from activations.kernels import library
from activations.sine import Sine
from activations.snake import Snake
from activations.srelu import SReLU

FAST = ("--units", "pwlu,frelu,nn.SiLU", "--sizes", "98x50", "--threads", "1", "--rounds", "3", "--no-step")


def test_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bench_activations.main([*FAST, "--output", str(tmp_path)])
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["unit"], row["path"]) for row in rows if not row["note"]] == [
        ("pwlu", "fused"),
        ("pwlu", "reference"),
        ("nn.SiLU", "torch"),
    ]
    for row in rows:
        if row["unit"] == "frelu":  # for images alone: its rows say so, and the others do not suffer
            assert "(N, C, H, W)" in row["note"]
            continue
        assert (row["size"], row["layout"], row["threads"], row["rounds"]) == (
            "98x50",
            "contiguous",
            "1",
            "3.0",
        )
        for name in ("fwd", "fwd_bwd"):
            low, middle, high = (float(row[name + end]) for end in ("_low", "", "_high"))
            assert 0 < low <= middle <= high < float("inf")
            assert 0 < float(row[f"{name}_us"]) < float("inf")
        assert min(float(row[name]) for name in ("copies", "copy_gb_per_s", "peak", "saved")) > 0
    assert (tmp_path / "activations.png").stat().st_size > 0
    assert (tmp_path / "activations.svg").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "| pwlu | " in printed
    (tmp_path / "activations.png").unlink()
    bench_activations.main(["--tables", "--output", str(tmp_path)])  # the same again, from the file
    assert capsys.readouterr().out.strip() in printed
    assert (tmp_path / "activations.png").exists()


def test_leaves_the_reference_out_where_it_takes_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_activations, "MAIN", (98, 49))
    bench_activations.main([*FAST, "--output", str(tmp_path)])
    with (tmp_path / "results.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {"fused", "torch"}


def test_avx2_starts_again_with_torchs_own_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replaced(Exception):
        """The process would be another one now."""

    def replace(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert arguments == [path, bench_activations.__file__, "--avx2", "--units", "pau"]
        assert environment["ATEN_CPU_CAPABILITY"] == "avx2"
        raise Replaced

    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(bench_activations.os, "execve", replace)
    with pytest.raises(Replaced):
        bench_activations.main(["--avx2", "--units", "pau"])


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "No such file"), ("", "No columns"), ("a,b\n1,2\n", "there is no column kind")],
)
def test_tables_of_something_else_are_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "results.csv").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        bench_activations.main(["--tables", "--output", str(tmp_path)])
    assert str(stopped.value).startswith("actbench: ")
    assert said in str(stopped.value)
    assert "\n" not in str(stopped.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench_activations.main(["--device", "cuda", "--output", str(tmp_path / "new")])
    assert str(stopped.value) == "actbench: --device cuda: torch finds no GPU"
    assert not (tmp_path / "new").exists()


def test_training_step(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_activations, "BATCH", 2)
    arguments = ["--step", "--units", "pwlu", "--threads", "1", "--rounds", "2", "--output", str(tmp_path)]
    bench_activations.main(arguments)
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["kind"], row["unit"], row["size"]) == ("step", "pwlu", "2x3x32x32")
    assert 0 < float(row["step_low"]) <= float(row["step"]) <= float(row["step_high"]) < float("inf")
    assert "| pwlu | contiguous | 1 | " in capsys.readouterr().out


def test_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the card's place, whose clock is another one, and nothing compiled."""
    monkeypatch.setattr(bench_gpu, "Card", bench_gpu.Processor)
    monkeypatch.setattr(bench_gpu, "compiled", lambda unit: unit)
    sizes = [((4, 3, 8, 8), torch.float32), ((2, 3, 8, 8), torch.bfloat16), ((5, 3), torch.float32)]
    monkeypatch.setattr(bench_gpu, "SIZES", sizes)
    arguments = ["--device", "cuda", "--units", "pwlu,frelu", "--rounds", "3", "--output", str(tmp_path)]
    bench_activations.main(arguments)
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["size"], row["dtype"], row["layout"]) for row in rows} == {
        ("5x3", "float32", "contiguous"),
        *(
            (size, dtype, layout)
            for size, dtype in (("4x3x8x8", "float32"), ("2x3x8x8", "bfloat16"))
            for layout in ("contiguous", "channels_last")
        ),
    }
    paths = [(row["unit"], row["path"]) for row in rows[:7]]
    assert paths[0] == ("relu", "torch")
    assert [path for unit, path in paths if unit == "pwlu"] == ["fused", "reference", "compiled"]
    # a unit of images alone: its rows say so, and the others do not suffer
    assert {(row["unit"], row["size"]) for row in rows if row["note"]} == {("frelu", "5x3")}
    for row in rows:
        if row["note"]:
            continue
        copied = float(row["copy_gb_per_s"])
        for key, moved in (("fwd", 2), ("bwd", 3)):
            low, middle, high = (float(row[f"{key}_us{end}"]) for end in ("_low", "", "_high"))
            assert 0 < low <= middle <= high < float("inf")
            bytes_of_x = {"4x3x8x8": 4 * 3 * 64 * 4, "2x3x8x8": 2 * 3 * 64 * 2, "5x3": 5 * 3 * 4}[row["size"]]
            gb_per_s = float(row[f"{key}_gb_per_s"])
            assert gb_per_s == pytest.approx(moved * bytes_of_x / middle / 1000, rel=0.01)
            assert float(row[f"{key}_share"]) == pytest.approx(gb_per_s / copied, rel=0.01)
            assert float(row[f"{key}_host_us"]) == pytest.approx(middle, rel=0.01)  # here both are one
    assert "| pwlu | " in capsys.readouterr().out


def test_every_unit_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first few alone of those that share the code of a class."""
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda unit: compile_by(unit, backend=keep))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    units = Snake(3), Sine(3), SReLU(3)
    with library.using("reference"):
        for unit in units:
            bench_gpu.compiled(unit)(torch.ones(2, 3))
    assert len(graphs) == len(units)


def test_where_the_host_takes_longer_its_time_is_shown() -> None:
    row = {
        "fwd_us": 70.0,
        "fwd_share": 0.9,
        "fwd_host_us": 60.0,
        "bwd_us": 9.0,
        "bwd_share": 0.4,
        "bwd_host_us": 50.0,
    }
    row |= {
        "size": "2x3",
        "dtype": "float32",
        "layout": "contiguous",
        "copy_gb_per_s": 3000,
        "unit": "pwlu",
        "path": "fused",
    }
    (table,) = bench_gpu.tables([row])
    assert "| pwlu | 70 (90%) / 9 (host 50) |" in table


def test_buffers_are_larger_than_the_cache() -> None:
    card = bench_gpu.Processor()
    pairs = bench_gpu.buffers(card, (4, 3, 8, 8), torch.float32, "channels_last")
    tensors = [tensor for pair in pairs for tensor in pair]
    assert sum(tensor.nbytes for tensor in tensors) >= bench_gpu.ROTATED * card.cache
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


def test_memory_is_that_of_known_modules() -> None:
    x, g = torch.randn(8, 4, 16, 16, requires_grad=True), torch.randn(8, 4, 16, 16)
    assert bench_activations.peak(nn.ReLU(), x, g) == 2  # output and input gradient
    assert bench_activations.saved(nn.ReLU(), x) == 1  # the output
    assert bench_activations.saved(nn.PReLU(4), x) == 1  # the input, and a parameter that does not count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--units", "no_such"], "--units no_such: none fits; there are acon_c, "),
        (["--sizes", "98"], "--sizes: invalid sizes value: '98'"),
        (["--threads", "0"], "--threads: invalid numbers value: '0'"),
        (["--layouts", "wide"], "--layouts wide: legal are contiguous, channels_last"),
        (["--rounds", "1"], "--rounds 1: at least 2"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--step", "--units", "relu"], "--units relu: of a step there are pwlu, "),
        (["--tables", "--no-step"], "not allowed with argument --tables"),
        (["--step", "--no-step"], "not allowed with argument --step"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench_activations.main(["--output", str(tmp_path), *arguments])
    line = capsys.readouterr().err or f"{stopped.value.code}\n"
    assert stopped.value.code == 2 or isinstance(stopped.value.code, str)  # which Python makes status 1
    assert line.startswith("actbench: ")
    assert line.count("\n") == 1
    assert said in line
