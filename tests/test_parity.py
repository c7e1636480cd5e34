"""Values and gradients against reference vectors, and the command that compares them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import check_parity
import numpy as np
import pytest
from conftest import PROCESS

from activations.kernels import library

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees_with_reference_vectors(path: Path) -> None:
    good, line = check_parity.check_file(path)
    assert good, line


OURS = sorted([*DATA.glob("kinks_*.npz"), *DATA.glob("formula_*.npz")])


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_the_reference_agrees_too(path: Path) -> None:
    with library.using("reference"):
        good, line = check_parity.check_file(path)
    assert good, line


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


@pytest.mark.parametrize("layout", ["channels_last", "strided_last", "transposed01"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_layout_does_not_matter(path: Path, layout: str, tmp_path: Path) -> None:
    arrays = dict(np.load(path))
    if arrays["x"].ndim < 2 or (layout == "channels_last" and arrays["x"].ndim != 4) or "ema_mean" in arrays:
        pytest.skip(f"no input of shape {arrays['x'].shape} is {layout}")
    good, line = check_parity.check_file(rewritten(tmp_path, arrays, x_layout=layout))
    assert good, line


def rewritten(folder: Path, arrays: dict[str, np.ndarray], **meta: object) -> Path:
    """A file like another one, with other meta."""
    path = folder / "file.npz"
    np.savez(path, **arrays | {"meta": np.array(json.dumps(json.loads(str(arrays["meta"])) | meta))})
    return path


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "scripts/check_parity.py", *arguments], **PROCESS)


@pytest.mark.parametrize("key", ["y", "grad_x", "grad__Y", "grad__Bl"])
def test_a_wrong_digit_is_found(key: str, tmp_path: Path) -> None:
    arrays = dict(np.load(DATA / "pwlu_layer_n16.npz"))
    assert check_parity.check_file(rewritten(tmp_path, arrays))[0]
    arrays[key] = arrays[key].copy()
    arrays[key].flat[0] += 1e-8
    assert not check_parity.check_file(rewritten(tmp_path, arrays))[0]


def test_the_command_counts_and_fails_on_what_it_cannot_read(tmp_path: Path) -> None:
    arrays = dict(np.load(DATA / "gct_l2.npz"))
    rewritten(tmp_path, arrays).rename(tmp_path / "good.npz")
    rewritten(tmp_path, arrays, activation="GTC").rename(tmp_path / "name.npz")
    rewritten(tmp_path, arrays, x_layout="sideways").rename(tmp_path / "layout.npz")
    (tmp_path / "half.npz").write_bytes((DATA / "gct_l2.npz").read_bytes()[:2000])
    done = run(str(tmp_path))
    assert done.returncode == 1
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert [line[:4].strip() for line in lines[:-1]] == ["ok", "FAIL", "FAIL", "FAIL"]
    assert "float64: y " in lines[0]
    assert "float32: y " in lines[0]
    assert "'GTC'" in lines[3]
    assert lines[-1] == "1 passed, 3 failed"


def test_the_command_passes_on_all_vectors_and_refuses_an_empty_folder(tmp_path: Path) -> None:
    done = run(str(DATA))
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"{len(FILES)} passed, 0 failed"
    done = run(str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"check_parity: no .npz files in {tmp_path}\n"
