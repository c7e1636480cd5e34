"""The trained network of a cell: loaded from its files, and exported to ONNX."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import export
import pytest
import torch
from conftest import ACTIVATIONS, make_factory, train
from torch import Tensor, nn

from actbench import load_network
from runners.trained import load_trained

QUICK = ("relu", "pwlu", "dyrelu")  # pointwise, table, and one that looks at the whole input
KEEP = ("activation=prelu", "runner=smoke", "runner.epochs=2", "runner.keep=weights")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    train(outputs, make_factory("prelu"), *KEEP, activation="prelu")
    return next(outputs.rglob("record.json")).parent


@pytest.mark.parametrize("best", [False, True])
def test_a_loaded_network_has_the_score_of_the_record(cell: Path, best: bool) -> None:
    task, network = load_trained(cell, best=best)
    record = json.loads((cell / "record.json").read_text())
    task.limit_batches = record["runner.limit_batches"]
    scores = task.evaluate(network, "test")
    assert scores["top1"] == pytest.approx(record["primary_best" if best else "primary"])
    assert scores["loss"] == pytest.approx(record["test_best_loss" if best else "test_loss"], rel=1e-5)


def test_the_checkpoint_stands_in_for_weights_that_were_not_kept(cell: Path, tmp_path: Path) -> None:
    for name in ("record.json", "config.yaml", "checkpoint.pt"):
        (tmp_path / name).write_bytes((cell / name).read_bytes())
    for best in (False, True):
        kept = load_network(cell, best=best).state_dict()
        for name, value in load_network(tmp_path, best=best).state_dict().items():
            assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (None, "no cell in this folder"),
        ("interrupted", "is interrupted; must be ok"),
        ("ok", "has no weights"),
    ],
)
def test_a_cell_without_a_trained_network_is_refused(
    status: str | None, message: str, cell: Path, tmp_path: Path
) -> None:
    if status is not None:
        record = json.loads((cell / "record.json").read_text()) | {"status": status}
        (tmp_path / "record.json").write_text(json.dumps(record))
        (tmp_path / "config.yaml").write_bytes((cell / "config.yaml").read_bytes())
    with pytest.raises(ValueError, match=message):
        load_network(tmp_path)


def test_damaged_weights_are_named(cell: Path, tmp_path: Path) -> None:
    for name in ("record.json", "config.yaml"):
        (tmp_path / name).write_bytes((cell / name).read_bytes())
    (tmp_path / "weights.pt").write_bytes((cell / "weights.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"weights\.pt: not a file of weights"):
        load_network(tmp_path)


def test_weights_of_another_network_are_refused(cell: Path, tmp_path: Path) -> None:
    for name in ("record.json", "config.yaml"):
        (tmp_path / name).write_bytes((cell / name).read_bytes())
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="do not fit the network that its settings make now"):
        load_network(tmp_path)


def needs_onnx() -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra onnx")


def assert_exported(name: str, path: Path) -> None:
    """One site of the activation between layers, with parameters that training may have moved."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), make_factory(name)(8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    )
    with torch.no_grad():
        for parameter in network[1].parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    assert export.export(network, torch.randn(5, 1, 8, 8), path) <= 1e-4
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("name", QUICK)
def test_an_activation_is_exported(name: str, tmp_path: Path) -> None:
    needs_onnx()
    assert_exported(name, tmp_path / "network.onnx")


def test_a_network_that_amplifies_rounding_is_measured_by_it(tmp_path: Path) -> None:
    needs_onnx()
    torch.manual_seed(0)
    finer = make_factory("finer")
    layers = [layer for _ in range(3) for layer in (nn.Linear(16, 16), finer(16))]
    samples = 3 * torch.randn(64, 16)
    largest = export.export(nn.Sequential(*layers), samples, tmp_path / "network.onnx")
    assert 1e-4 < largest < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in QUICK])
def test_every_activation_is_exported(name: str, tmp_path: Path) -> None:
    needs_onnx()
    assert_exported(name, tmp_path / "network.onnx")


def test_a_cell_is_exported(
    cell: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    needs_onnx()
    import onnxruntime

    monkeypatch.setattr("sys.argv", ["export.py", str(cell), "--best"])
    export.main()
    path = cell / "network_best.onnx"
    assert capsys.readouterr().out.startswith(f"{path}: differs from torch by ")
    samples = torch.rand(7, 1, 8, 8)
    (found,) = onnxruntime.InferenceSession(path).run(["output"], {"input": samples.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(found), load_network(cell, best=True)(samples), rtol=1e-4, atol=1e-4
    )


class Branching(nn.Module):
    """Reads a value, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum().item() > 0 else x


def wrong(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Another function in ONNX than in torch."""
    at_export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda network, *a, **k: at_export(nn.Sigmoid(), *a, **k))
    return nn.ReLU()


def missing(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    return nn.ReLU()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda monkeypatch: Branching(), "cannot be exported to ONNX: "),
        (wrong, "in ONNX Runtime, must be at most"),
        (missing, r"onnxruntime is not installed; pip install 'actbench\[onnx\]'"),
    ],
    ids=["branches", "differs", "not installed"],
)
def test_what_cannot_be_exported_is_said_in_one_line_and_leaves_no_file(
    make: Callable[..., nn.Module], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is not missing:
        needs_onnx()
    with pytest.raises(ValueError, match=message) as raised:
        export.export(make(monkeypatch), torch.randn(3, 4), tmp_path / "network.onnx")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
