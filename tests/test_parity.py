"""Values and gradients against reference vectors, and the command that compares them."""

import json
import runpy
import subprocess
from pathlib import Path

import check_parity
import forked
import numpy as np
import pytest
from conftest import PROCESS, ROOT

from activations.kernels import library

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.npz"))


LAYOUTS = ("channels_last", "strided_last", "transposed01")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees_with_reference_vectors_in_any_layout(path: Path) -> None:
    arrays = dict(np.load(path))
    good, line = check_parity.check(arrays)
    assert good, line
    rank = 1 if "ema_mean" in arrays else arrays["x"].ndim  # whose x is a list of batches
    for layout in LAYOUTS:
        if rank == 4 or (rank > 1 and layout != "channels_last"):
            good, line = check_parity.check(changed(arrays, x_layout=layout))
            assert good, f"{layout}: {line}"
    if path.stem.startswith(
        ("kinks_", "formula_")
    ):  # which are ours: the others come from references of their own
        with library.using("reference"):
            good, line = check_parity.check(arrays)
        assert good, f"reference: {line}"


@pytest.mark.parametrize("kind", ["kinks", "formula"])
def test_the_vectors_are_what_their_formulas_give(kind: str) -> None:
    script = {"kinks": "make_kinks.py", "formula": "make_formulas.py"}[kind]
    made = runpy.run_path(str(DATA / script))["all_vectors"]()
    assert {f"{name}.npz" for name in made} == {path.name for path in DATA.glob(f"{kind}_*.npz")}
    for name, arrays in made.items():
        stored = np.load(DATA / f"{name}.npz")
        assert {*stored} == {*arrays}
        for key in arrays.keys() - {"meta"}:
            np.testing.assert_allclose(
                stored[key], arrays[key], rtol=1e-12, atol=1e-12, err_msg=f"{name} {key}"
            )


def changed(arrays: dict[str, np.ndarray], **meta: object) -> dict[str, np.ndarray]:
    """What a file holds, with other meta."""
    return arrays | {"meta": np.array(json.dumps(json.loads(str(arrays["meta"])) | meta))}


@pytest.mark.parametrize("key", ["y", "grad_x", "grad__Y", "grad__Bl"])
def test_a_wrong_digit_is_found(key: str) -> None:
    arrays = dict(np.load(DATA / "pwlu_layer_n16.npz"))
    assert check_parity.check(arrays)[0]
    arrays[key] = arrays[key].copy()
    arrays[key].flat[0] += 1e-8
    assert not check_parity.check(arrays)[0]


def test_the_command_counts_and_fails_on_what_it_cannot_read(tmp_path: Path) -> None:
    arrays = dict(np.load(DATA / "gct_l2.npz"))
    np.savez(tmp_path / "good.npz", **arrays)
    np.savez(tmp_path / "name.npz", **changed(arrays, activation="GTC"))
    np.savez(tmp_path / "layout.npz", **changed(arrays, x_layout="sideways"))
    (tmp_path / "half.npz").write_bytes((DATA / "gct_l2.npz").read_bytes()[:2000])
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert [line[:4].strip() for line in lines[:-1]] == ["ok", "FAIL", "FAIL", "FAIL"]
    assert "float64: y " in lines[0]
    assert "float32: y " in lines[0]
    assert "'GTC'" in lines[3]
    assert lines[-1] == "1 passed, 3 failed"
    done = run(tmp_path / "empty")
    assert (done.returncode, done.stderr) == (1, f"check_parity: no .npz files in {tmp_path / 'empty'}\n")
    for bad in ("name", "layout", "half"):
        (tmp_path / f"{bad}.npz").unlink()
    assert run(tmp_path).returncode == 0


def run(folder: Path) -> subprocess.CompletedProcess:
    return forked.run(["scripts/check_parity.py", folder], cwd=ROOT, env=PROCESS["env"])
