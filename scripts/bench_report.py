"""Time and memory of the report on generated studies: 100, 1,000 and 10,000 cells of 100 epochs.

python scripts/bench_report.py [CELLS ...]

Every size is generated in a temporary folder and reported by a process of its own, so that the figures include all imports.
"""

import io
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from _here import ROOT, command_line

from results.escape import markdown_table

# activations, seeds, tasks: a study grows in all of them
SHAPES = {100: (10, 5, 2), 1000: (20, 10, 5), 10_000: (40, 25, 10)}
EPOCHS = 100
POINTS = 241
SITES = 7
CHANNELS = 16
NAMES = sorted(path.stem for path in (ROOT / "conf" / "activation").glob("*.yaml"))

MEASURE = """
import resource, sys, time
from pathlib import Path
from results.report import write_report
path, table = write_report(Path(sys.argv[1]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
print(f"{time.process_time():.2f} {peak:.0f} {len(table)} {path.with_name('index.html').stat().st_size / 1e6:.2f}")
"""


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    parser.add_argument("cells", nargs="*", type=int, help="sizes (all of them)")
    sizes = parser.parse_args().cells or list(SHAPES)
    if unknown := [str(size) for size in sizes if size not in SHAPES]:
        parser.error(f"{', '.join(unknown)}: legal: {', '.join(map(str, SHAPES))}")
    heads = ["cells", "rows", "seconds", "of them computing", "peak MB", "page MB"]
    print("\n".join(markdown_table(heads, "rrrrrr", [])))
    for cells in sizes:
        with tempfile.TemporaryDirectory() as folder:
            study = Path(folder) / "study"
            write_study(study, *SHAPES[cells])
            since = time.perf_counter()
            command = [sys.executable, "-c", MEASURE, str(study)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - since
        if done.returncode:
            sys.exit(done.stderr)
        computing, peak, rows, page = map(float, done.stdout.split())
        print(
            f"| {cells:,} | {rows:.0f} | {seconds:.1f} | {computing:.1f} | {peak:.0f} | {page:.2f} |",
            flush=True,
        )


def write_study(study: Path, activations: int, seeds: int, tasks: int, epochs: int = EPOCHS) -> None:
    """Write a study of made-up cells: scores with effects of activation and seed, curves of 100 epochs, learned shapes."""
    rng = np.random.default_rng(0)
    names = ["relu", *[name for name in NAMES if name != "relu"][: activations - 1]]
    shapes = {name: _learned(rng) for name in names}
    for t in range(tasks):
        of_seed = rng.normal(size=seeds)
        for k, name in enumerate(names):
            for seed in range(seeds):
                score = 80 + 0.05 * k + 0.7 * (of_seed[seed] + rng.normal())
                _write_cell(study, f"task{t}", name, seed, float(score), shapes[name], epochs, rng)


def _write_cell(
    study: Path,
    task: str,
    name: str,
    seed: int,
    score: float,
    shape: bytes,
    epochs: int,
    rng: np.random.Generator,
) -> None:
    identity = f"{zlib.crc32(str((task, name)).encode()) % 16**6:06x}{seed:04x}"
    cell = study / task / name / f"{seed}-{identity}"
    cell.mkdir(parents=True)
    record = {
        "activation": name, "task": task, "network": "small_cnn", "seed": seed, "cell": identity, "study": study.name,
        "started": "2026-01-01T00:00:00+00:00", "written": "2026-01-01T00:01:00+00:00",
        "command": f"run.py -m activation=glob(*) task={task}", "status": "ok", "reason": None,
        "primary_metric": "top1", "higher_is_better": True, "primary": score, "primary_best": score + 0.1,
        "primary_val": score - 0.2, "best_epoch": epochs - 2, "test_loss": 1.0, "test_top1": score, "epochs": epochs,
        "steps": 100 * epochs, "epochs_trained": epochs, "train_seconds": 60.0, "loop_seconds": 80.0,
        "seconds_per_epoch": 0.6, "parameters": 24058, "activation_parameters": 112, "flops": 10**6,
        "activation_flops": 10**4, "sites": SITES, "activation_code": f"{len(name):064x}", "data_fingerprint": task,
        "git_commit": "0" * 40, "machine": "m", "cpu": "c", "platform": "p", "python": "3.12.1", "torch": "2.14.1",
        "numpy": "2.0", "device": "cpu", "num_threads": 1, "kernels": "fused avx2",
        "sessions": [{"started": "2026-01-01T00:00:00+00:00", "epoch": 0, "step": 0, "torch": "2.14.1"}],
        "activation._target_": f"activations.{name}.Unit", "task._target_": "tasks.classification.Classification",
        "task.data._target_": "tasks.data.images.digits", "task.recipe.epochs": epochs, "task.recipe.lr": 0.1,
        "task.recipe.batch_size": 64, "task.recipe.optimizer": "sgd", "task.recipe.schedule": "cosine",
        "task.val_fraction": 0.2, "task.test_fraction": 0.3, "network._target_": "tasks.networks.build.build",
        "network.sites": "all", "network.width": 16, "runner._target_": "runners.train.Train", "runner.amp": "off",
    }  # fmt: skip
    (cell / "record.json").write_text(json.dumps(record, indent=1))
    decay = np.exp(-np.arange(epochs) / 20)
    lines = ["epoch,split,loss,top1,top5,ece,lr,seconds,samples_per_s"]
    for epoch, (rest, noise) in enumerate(zip(decay, rng.normal(size=epochs), strict=True)):
        top1 = score - 40 * rest + 0.3 * noise
        lines.append(f"{epoch},train,{2 * rest + 0.1:.17g},{top1 + 1:.17g},,,{0.1 * rest:.17g},0.61,1785.2")
        lines.append(f"{epoch},val,{2 * rest + 0.2:.17g},{top1:.17g},99.1,1.2,,0.1,")
    lines.append(f"{epochs - 1},test,0.2,{score:.17g},99.2,1.3,,0.2,")
    (cell / "metrics.csv").write_text("\n".join(lines) + "\n")
    (cell / "curves.npz").write_bytes(shape)


def _learned(rng: np.random.Generator) -> bytes:
    """A ``curves.npz`` of PReLU-like units."""

    x = np.linspace(-6, 6, POINTS, dtype=np.float32)
    density = np.append(np.exp(-(x**2) / 2), 0).astype(np.float32)
    arrays = {"x": x}
    for site in (f"blocks.{k}.act" for k in range(SITES)):
        slopes = rng.normal(0.25, 0.1, CHANNELS).astype(np.float32)
        arrays[f"inputs/{site}"] = density / density.sum()
        arrays[f"curve/{site}"] = np.where(x > 0, x, slopes[:, None] * x)
        arrays[f"diagnostic/{site}/slope"] = slopes
        for epoch, share in ((0, 0.0), (EPOCHS // 4, 0.5), (EPOCHS // 2, 0.8)):
            arrays[f"evolution/{epoch}/{site}"] = np.where(
                x > 0, x, (0.25 + share * (slopes.mean() - 0.25)) * x
            ).astype(np.float16)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for options
    return buffer.getvalue()


if __name__ == "__main__":
    main()
