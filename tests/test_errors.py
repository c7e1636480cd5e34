"""What a user can get wrong, through the real command line: one clear line, no traceback, nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROCESS, command
from PIL import Image

FOLDER = ("task=cifar10_small", "task.data.root={root}", "task.data.cache={tmp}/cache", "runner=smoke")
OWN = ("task=image_folder", "task.data.cache={tmp}/cache", "runner=smoke")

CASES = {
    "unknown activation": (
        ("activation=pralu",),
        "activation=pralu: no such activation; did you mean prelu? Legal: acon_c,",
    ),
    "unknown task": (
        ("task=mnist",),
        "task=mnist: no such task; Legal: absolute_value,",
    ),
    "unknown runner": (("runner=smok",), "runner=smok: no such runner; did you mean smoke?"),
    "misspelt hyper-parameter": (
        ("activation=prelu", "activation.inti=1"),
        "activation.inti: no such name; did you mean init? Legal: init, shared",
    ),
    "misspelt recipe": (
        ("task.recipe.lrr=1",),
        "task.recipe.lrr: no such name; did you mean lr? Legal: batch_size,",
    ),
    "misspelt top level": (("sead=1",), "sead: no such name; did you mean seed?"),
    "added hyper-parameter": (
        ("activation=prelu", "+activation.foo=1"),
        "activation=prelu: PReLU.__init__() got an unexpected keyword argument 'foo'; hyper-parameters: shared, init",
    ),
    "hyper-parameter of the wrong kind": (
        ("activation=prelu", "activation.init=big"),
        "activation=prelu: init='big': must be a number",
    ),
    "no such class": (("activation._target_=nowhere.Unit",), "Error loading 'nowhere.Unit'"),
    "no activation": (
        ("activation._target_=torch.nn.ReLU",),
        "activation=ReLU: torch.nn.modules.activation.ReLU is no subclass of activations.base.Activation",
    ),
    "epochs": (("runner.epochs=-1",), "runner.epochs=-1: a whole number of at least 1 is needed"),
    "batch size": (
        ("task.recipe.batch_size=0",),
        "task.recipe.batch_size=0: a whole number of at least 1 is needed",
    ),
    "learning rate": (("task.recipe.lr=nan",), "task.recipe.lr=nan: a number above 0 is needed"),
    "seed": (("seed=one",), "seed=one: a whole number of at least 0 is needed"),
    "study": (("study=../up",), "study=../up: letters, digits"),
    "device": (("runner.device=cuda:7",), "runner.device=cuda:7: this machine has auto, "),
    "depth": (
        (*FOLDER, "task.train_size=30", "task.test_size=10", "network.depth=9"),
        "network.depth=9: 6 n + 2 is needed",
    ),
    "sweep without -m": (("seed=0,1",), "add --multirun to your command line"),
    "no outputs": (("outputs={tmp}/file",), "Not a directory"),
    "no data": ((*FOLDER, "task.data.root={tmp}/none"), "none: no such folder; needed are train/ and test/"),
    "empty data": ((*FOLDER, "task.data.root={tmp}/empty"), "empty: is empty; needed are train/ and test/"),
    "empty tree": (
        (*FOLDER, "task.data.root={tmp}/tree"),
        "tree: no images in train/c0/ (.jpg, .jpeg,",
    ),
    "no test folder": ((*FOLDER, "task.data.root={tmp}/half"), "half: has no folder test/"),
    "different classes": (
        (*FOLDER, "task.data.root={tmp}/differ"),
        "classes differ: only in train: c0, c1; only in test: d0, d1",
    ),
    "unreadable image": (
        (*FOLDER, "task.data.root={tmp}/bad"),
        "bad/train/c1/broken.png: not a readable image",
    ),
    "truncated image": ((*FOLDER, "task.data.root={tmp}/cut"), "cut/test/c0/0.png: not a readable image"),
    "images of two sizes": (
        (*FOLDER, "task.data.root={tmp}/sizes"),
        "images of one size are needed, this one is 20 x 32",
    ),
    "other classes than CIFAR-10": (
        (*FOLDER, "task.data.root={tmp}/two"),
        "CIFAR-10 has 10 classes, this folder has 2",
    ),
    "empty class": ((*FOLDER, "task.data.root={tmp}/gap"), "gap: no images in train/c1/ (.jpg, .jpeg,"),
    "unreadable image, streamed": (
        (
            *OWN,
            "task.data.root={tmp}/bad",
            *("task.data.in_memory=false", "task.data.stored=32"),
            "task.eval_crop.size=24",
        ),
        "bad/train/c1/broken.png: not a readable image",
    ),
    "images smaller than what is stored": (
        (*OWN, "task.data.root={tmp}/two"),
        "0.png: 32 x 32 is smaller than task.data.stored=160; task.data.enlarge=true enlarges such images",
    ),
    "images smaller than the crop": (
        (*OWN, "task.data.root={tmp}/two", "task.data.stored=32"),
        "task.augment.crop.size=128 x 128: the images are 32 x 32, smaller than the crop",
    ),
    "wnid not found": (
        ("task=imagenet_subset", "task.data.root={tmp}/two", "task.data.classes=[n01440764,n02102040]"),
        "task.data.classes: no folder n01440764 in {tmp}/two/train, which has 2, from c0 to c1",
    ),
    "mixup": (("task.recipe.mixup=-1",), "task.recipe.mixup=-1: a number at least 0 is needed"),
    "more training images than there are": (
        (*FOLDER,),
        "task.train_size: cannot choose 10000 of 36 samples: 1 to 35 are possible",
    ),
}


def make_tree(root: Path, train: str = "c", test: str = "c", classes: int = 2, images: int = 4) -> Path:
    for split, letter in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"{letter}{label}"
            folder.mkdir(parents=True)
            for i in range(images):
                Image.effect_noise((32, 32), 50 + i).convert("RGB").save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("errors")
    (tmp / "file").touch()
    (tmp / "empty").mkdir()
    (tmp / "tree" / "train" / "c0").mkdir(parents=True)
    (tmp / "tree" / "test" / "c0").mkdir(parents=True)
    (tmp / "half" / "train" / "c0").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp / "half" / "train" / "c0" / "0.png")
    make_tree(tmp / "differ", test="d")
    make_tree(tmp / "two")
    for image in (make_tree(tmp / "gap") / "train" / "c1").iterdir():
        image.unlink()
    (make_tree(tmp / "bad") / "train" / "c1" / "broken.png").write_text("not an image")
    cut = make_tree(tmp / "cut") / "test" / "c0" / "0.png"
    cut.write_bytes(cut.read_bytes()[:200])
    Image.new("RGB", (20, 32)).save(make_tree(tmp / "sizes") / "train" / "c1" / "0.png")
    make_tree(tmp / "ten", classes=10)
    return tmp


@pytest.mark.parametrize("case", CASES)
def test_one_line(case: str, place: Path, tmp_path: Path, cli) -> None:
    overrides, message = CASES[case]
    values = {"root": place / "ten", "tmp": place}
    given = [override.format(**values) for override in overrides]
    run = cli(*dict.fromkeys(override for override in given if not overridden(override, given)))
    assert run.returncode != 0
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert run.stderr.startswith("actbench: ")
    assert message.format(**values) in run.stderr
    assert not (tmp_path / "outputs").exists()


def overridden(override: str, given: list[str]) -> bool:
    """Whether a later override of the same name follows."""
    later = [other for other in given if other.partition("=")[0] == override.partition("=")[0]]
    return later[-1] != override


def test_two_configurations_that_would_share_a_folder(tmp_path: Path, cli) -> None:
    assert cli("runner=smoke").returncode == 0
    config = next((tmp_path / "outputs").glob("**/config.yaml"))
    config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.2"))
    for extra in ((), ("force=true",)):
        run = cli("runner=smoke", *extra)
        assert run.returncode != 0
        assert len(run.stderr.splitlines()) == 1
        assert "holds another configuration (task.recipe.lr=0.2 there, 0.1 now)" in run.stderr


def test_a_damaged_record_is_said(tmp_path: Path, cli) -> None:
    assert cli("runner=smoke").returncode == 0
    record = next((tmp_path / "outputs").glob("**/record.json"))
    record.write_text(record.read_text()[:100])
    run = cli("runner=smoke")
    assert run.returncode != 0
    assert len(run.stderr.splitlines()) == 1
    assert "record.json: damaged" in run.stderr


def test_outputs_that_cannot_be_written(tmp_path: Path, cli) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    outputs.chmod(0o500)
    if os.access(outputs, os.W_OK):
        pytest.skip("this user may write everywhere; the case of a file in the way is tested above")
    run = cli("runner=smoke")
    assert run.returncode != 0
    assert len(run.stderr.splitlines()) == 1
    assert "Permission denied" in run.stderr


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does, and needs no privileges."""
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    settings = PROCESS | {"timeout": 300}
    run = subprocess.run([sys.executable, "-c", limited, *command(tmp_path, "runner=smoke")], **settings)
    assert run.returncode != 0
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert "checkpoint.pt: File too large" in run.stderr
    folder = next((tmp_path / "outputs").glob("**/record.json")).parent
    assert not (folder / "checkpoint.pt").exists()
    assert not list(folder.glob(".*.tmp"))

    run = subprocess.run(command(tmp_path, "runner=smoke"), **settings)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("study", ["none", "empty"])
def test_a_report_of_nothing(tmp_path: Path, study: str) -> None:
    (tmp_path / "empty").mkdir()
    run = subprocess.run([sys.executable, "scripts/report.py", str(tmp_path / study)], **PROCESS)
    assert run.returncode != 0
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(f"actbench: {tmp_path / study}: no ")
