"""Data: sources, cache, augmentation. Downloads are exercised against a server on this machine."""

import functools
import gzip
import http.server
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator, Sequence
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data import images, store
from tasks.data.cache import CacheEntry, cached, key_of_files, save
from tasks.data.files import WHITE
from tasks.data.folders import image_folder, imagenette
from tasks.data.functions import sines2d
from tasks.data.images import cifar10, cifar100, digits, fashion_mnist
from tasks.data.store import Stream
from tasks.data.survey import survey_files


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    ours, theirs = digits(), load_digits()
    assert np.array_equal(ours.store.samples.squeeze(1).numpy(), theirs.images)
    assert np.array_equal(ours.labels.numpy(), theirs.target)
    assert ours.test is None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six classes, four training images and one test image each, of several kinds and file types."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for label in range(6):
            folder = tmp_path / "tree" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
                pixels.convert(["RGB", "L", "RGBA", "P"][i % 4]).save(folder / f"{i}.{'png' if i else 'PNG'}")
    return tmp_path / "tree"


def test_a_folder_becomes_one_tensor_with_its_labels(tree: Path, tmp_path: Path) -> None:
    found = image_folder(str(tree), stored=8, cache=str(tmp_path / "cache"))
    assert found.store.shape == (3, 8, 8)
    assert found.store.samples.dtype == torch.uint8
    assert found.classes == tuple(f"class{i}" for i in range(6))
    assert found.labels[found.train].tolist() == [i for i in range(6) for _ in range(4)]
    assert found.labels[found.test].tolist() == list(range(6))
    names = sorted(os.listdir(tree / "train" / "class0"))
    for i, name in enumerate(names):
        assert np.array_equal(found.store.samples[i].numpy(), usual(tree / "train" / "class0" / name, 8))


def usual(path: Path, side: int) -> np.ndarray:
    """torchvision's way to an image of one size."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms import v2

    image = v2.CenterCrop(side)(v2.Resize(side)(default_loader(str(path))))
    return np.asarray(image).transpose(2, 0, 1)


def test_decoding_happens_once_until_the_data_change(tree: Path, tmp_path: Path, monkeypatch) -> None:
    decoded = []
    original = store.decode

    def decode(stream: Stream, path: Path) -> None:
        decoded.append(len(stream))
        original(stream, path)

    monkeypatch.setattr(store, "decode", decode)
    cache = str(tmp_path / "cache")

    first = image_folder(str(tree), stored=8, cache=cache)
    again = image_folder(str(tree), stored=8, cache=cache)
    assert decoded == [30]
    assert torch.equal(first.store.samples, again.store.samples)
    assert first.fingerprint == again.fingerprint
    other = image_folder(str(tree), stored=9, cache=cache)
    assert decoded == [30, 30]
    assert other.fingerprint != first.fingerprint

    # other pixels in a file of the same name and modification time
    path = tree / "train" / "class0" / "1.png"
    status = path.stat()
    Image.open(path).point(lambda value: value // 2).save(tmp_path / "other.png")
    path.write_bytes((tmp_path / "other.png").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = image_folder(str(tree), stored=8, cache=cache)
    assert decoded == [30, 30, 30]
    assert not torch.equal(changed.store.samples, first.store.samples)
    assert changed.fingerprint != first.fingerprint

    (tree / "train" / "class0" / "0.PNG").unlink()
    assert len(image_folder(str(tree), stored=8, cache=cache).labels) == 29


def test_the_key_changes_with_name_size_and_times(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    key = key_of_files("kind", tmp_path, [path])
    assert key == key_of_files("kind", tmp_path, [path])
    assert key != key_of_files("other", tmp_path, [path])
    os.utime(path, ns=(1, 1))
    assert key != key_of_files("kind", tmp_path, [path])


def test_a_cache_entry_appears_as_a_whole(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        save(folder, a=np.arange(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "cache", "key", fails)
    assert not (tmp_path / "cache" / "key").exists()
    made = cached(tmp_path / "cache", "key", lambda folder: save(folder, a=np.arange(5), name="text"))
    assert made["a"].tolist() == [0, 1, 2, 3, 4]
    assert str(made["name"]) == "text"
    assert sorted(os.listdir(tmp_path / "cache")) == [".key.lock", "key"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".key.123").mkdir()
    (tmp_path / ".other.123").mkdir()
    cached(tmp_path, "key", lambda folder: save(folder, a=np.arange(5)))
    assert sorted(os.listdir(tmp_path)) == [".key.lock", ".other.123", "key"]


@pytest.mark.parametrize("all_of_it", [True, False])
def test_a_cache_entry_without_its_arrays_is_made_again(tmp_path: Path, all_of_it: bool) -> None:
    def build(folder: Path) -> None:
        save(folder, a=np.arange(5), b=np.arange(6))

    cached(tmp_path, "key", build)
    for path in list((tmp_path / "key").iterdir()):
        if all_of_it or path.name == "b.npy":
            path.unlink()
    assert {name: len(array) for name, array in cached(tmp_path, "key", build).items()} == {"a": 5, "b": 6}


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_text("x")
    key = key_of_files("kind", tmp_path, [path])
    survey = survey_files([path], [0], ["a"], "kind", CacheEntry(tmp_path / "cache", key), background=WHITE)
    assert len(survey.fingerprint) == 16


def test_a_read_only_folder_with_the_files_will_do(tmp_path: Path, monkeypatch) -> None:
    published = images.TorchvisionDownload("Name", "unpacked", ("archive",), 1)

    class Refused:
        def __init__(self, path: Path) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "FileLock", Refused)
    with pytest.raises(ValueError, match=r"cannot write there \(Permission denied\)"):
        published.ensure(tmp_path, True, pytest.fail)
    (tmp_path / "unpacked").mkdir()
    published.ensure(tmp_path, False, pytest.fail)


@pytest.mark.parametrize("length", [0, 500])
def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, length: int) -> None:
    def build(folder: Path) -> None:
        save(folder, a=np.arange(1000))

    cached(tmp_path, "key", build)
    (tmp_path / "key" / "a.npy").write_bytes((tmp_path / "key" / "a.npy").read_bytes()[:length])
    assert cached(tmp_path, "key", build)["a"].sum() == 499500


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache="):
        cached(tmp_path / "file", "key", lambda folder: save(folder, a=np.arange(5)))


def test_sines2d_by_hand() -> None:
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    a = [[9, -7], [-9, 11], [3, 13], [9, 9], [13, 5], [3, 19]]
    w = [0.4, 0.1, 0.15, 0.15, 0.1, 0.1]
    expected = sum(wi * np.sin(ai[0] * 0.3 - ai[1] * 0.7) for wi, ai in zip(w, a, strict=True))
    assert sines2d(x).shape == (1, 1)
    assert sines2d(x).item() == pytest.approx(expected, abs=1e-6)


# torchvision's files -------------------------------------------------------------------------------------------

NOBODY = "http://127.0.0.1:9/"  # nobody answers there
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which this machine serves it."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """torchvision asks for the file twice and hangs up on the first answer."""

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def md5_of(path: Path) -> str:
    return md5(path.read_bytes()).hexdigest()


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)


def make_cifar(
    source: type, folder: Path, parts: dict[str, int], names: list[str], label_key: str
) -> dict[str, list]:
    """Files in the format of CIFAR-10 and -100, and their checksums."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5_of(folder / name)]

    listed = {
        name: write(
            name,
            {
                "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                label_key: [i % len(names) for i in range(count)],
            },
        )
        for name, count in parts.items()
    }
    meta = write(source.meta["filename"], {source.meta["key"]: names})
    return listed | {"meta": meta}


@pytest.fixture
def archive(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in CIFAR-10's format, served on this machine; torchvision is told its checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "made" / "cifar-10-batches-py"
    parts = {f"data_batch_{i}": 40 for i in range(1, 6)} | {"test_batch": 30}
    listed = make_cifar(CIFAR10, folder, parts, CIFAR10_CLASSES, "labels")
    path = served[0] / CIFAR10.filename
    pack(folder, path)
    monkeypatch.setattr(CIFAR10, "url", served[1] + path.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5_of(path))
    monkeypatch.setattr(CIFAR10, "train_list", [listed[name] for name in list(parts)[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [listed["test_batch"]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": listed["meta"][1]})
    return path


def test_cifar10_is_downloaded_only_when_asked(archive: Path, tmp_path: Path) -> None:
    root, cache = str(tmp_path / "root"), str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"download=true fetches"):
        cifar10(root, cache=cache)
    found = cifar10(root, download=True, cache=cache)
    assert found.store.samples.shape == (230, 3, 32, 32)
    assert (len(found.train), len(found.test)) == (200, 30)
    assert found.classes[:2] == ("airplane", "automobile")

    offline = cifar10(root, cache=str(tmp_path / "other cache"))
    assert torch.equal(offline.store.samples, found.store.samples)
    assert offline.fingerprint == found.fingerprint


def test_cifar10_archive_on_disk_is_unpacked(archive: Path, tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", NOBODY)
    root = tmp_path / "root"
    root.mkdir()
    (root / archive.name).write_bytes(archive.read_bytes())
    assert len(cifar10(str(root), cache=str(tmp_path / "cache")).labels) == 230


def test_files_and_folder_of_the_same_images_have_one_fingerprint(archive: Path, tmp_path: Path) -> None:
    found = cifar10(str(tmp_path / "root"), download=True, cache=str(tmp_path / "cache"))
    samples = found.store.samples
    tree = tmp_path / "tree"
    by_label = torch.cat(
        [index[found.labels[index].argsort(stable=True)] for index in (found.train, found.test)]
    )
    for i in by_label.tolist():
        split = "train" if i < 200 else "test"
        folder = tree / split / found.classes[found.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(samples[i].permute(1, 2, 0).numpy()).save(folder / f"{i:04}.png")
    again = cifar10(str(tree), cache=str(tmp_path / "cache"))
    assert torch.equal(again.store.samples, samples[by_label])
    sorted_set = {"images": samples[by_label].numpy(), "labels": found.labels[by_label].numpy()}
    facts = images._facts(sorted_set["images"], sorted_set["labels"], 200, found.classes)
    assert again.fingerprint == str(facts["fingerprint"])


@pytest.mark.parametrize("broken", ["file", "archive", "server"])
def test_broken_torchvision_files_are_said(archive: Path, tmp_path: Path, monkeypatch, broken: str) -> None:
    from torchvision.datasets import CIFAR10

    root = tmp_path / "root"
    if broken == "file":
        cifar10(str(root), download=True, cache=str(tmp_path / "cache"))
        (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"short")
        (root / archive.name).unlink()  # with it the files would be mended
    else:
        monkeypatch.setattr(CIFAR10, "url", NOBODY + CIFAR10.filename)
        root.mkdir()
        if broken == "archive":
            (root / archive.name).write_bytes(archive.read_bytes()[:1000])
    said = f"cannot unpack {archive.name}" if broken == "archive" else "torchvision failed: "
    with pytest.raises(ValueError, match=f"^root={root}: {said}"):
        cifar10(str(root), download=broken == "server", cache=str(tmp_path / "cache"))


def test_cifar100_has_the_fine_classes(served: tuple[Path, str], tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "made" / "cifar-100-python"
    names = [f"thing{i:02}" for i in range(100)]
    listed = make_cifar(CIFAR100, folder, {"train": 300, "test": 100}, names, "fine_labels")
    pack(folder, served[0] / CIFAR100.filename)
    monkeypatch.setattr(CIFAR100, "url", served[1] + CIFAR100.filename)
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5_of(served[0] / CIFAR100.filename))
    monkeypatch.setattr(CIFAR100, "train_list", [listed["train"]])
    monkeypatch.setattr(CIFAR100, "test_list", [listed["test"]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": listed["meta"][1]})
    found = cifar100(str(tmp_path / "root"), download=True, cache=str(tmp_path / "cache"))
    assert (len(found.train), len(found.test), found.classes) == (300, 100, tuple(names))
    data = pickle.loads((folder / "test").read_bytes())["data"]
    assert np.array_equal(found.store.samples[300:].flatten(1).numpy(), data)


def test_fashion_mnist_packed_and_unpacked(served: tuple[Path, str], tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import FashionMNIST

    rng = np.random.default_rng(0)
    pixels = {
        part: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 50), ("t10k", 20))
    }
    for part, data in pixels.items():
        files = {
            f"{part}-images-idx3-ubyte.gz": struct.pack(">4i", 0x803, *data.shape) + data.tobytes(),
            f"{part}-labels-idx1-ubyte.gz": struct.pack(">2i", 0x801, len(data))
            + bytes(i % 10 for i in range(len(data))),
        }
        for name, content in files.items():
            (served[0] / name).write_bytes(gzip.compress(content))
    monkeypatch.setattr(FashionMNIST, "mirrors", [served[1]])
    resources = [(name, md5_of(served[0] / name)) for name, _ in FashionMNIST.resources]
    monkeypatch.setattr(FashionMNIST, "resources", resources)

    cache = str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"must contain torchvision's .* which download=true fetches"):
        fashion_mnist(str(tmp_path / "root"), cache=cache)
    found = fashion_mnist(str(tmp_path / "root"), download=True, cache=cache)
    assert np.array_equal(found.store.samples[:, 0].numpy(), np.concatenate(list(pixels.values())))
    assert found.labels[found.test].tolist() == [i % 10 for i in range(20)]
    assert found.classes[0] == "T-shirt/top"

    monkeypatch.setattr(FashionMNIST, "mirrors", [NOBODY])
    raw = tmp_path / "packed" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, _ in resources:
        (raw / name).write_bytes((served[0] / name).read_bytes())
    again = fashion_mnist(str(tmp_path / "packed"), cache=str(tmp_path / "other"))
    assert again.fingerprint == found.fingerprint


WNIDS = ("n01440764", "n02102040", "n02979186")


def make_folders(
    root: Path, splits: dict[str, int], classes: Sequence[str], size: tuple[int, int] = (48, 40)
) -> Path:
    """Smooth JPEGs, every one another."""
    rng = np.random.default_rng(len(classes))
    for split, count in splits.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
                small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.JPEG", quality=90)
    return root


def test_imagenette_is_found_unpacked_or_downloaded(
    served: tuple[Path, str], tmp_path: Path, monkeypatch
) -> None:
    from torchvision.datasets import Imagenette

    made = make_folders(tmp_path / "imagenette2-160", {"train": 3, "val": 2}, WNIDS)
    archive = served[0] / "imagenette2-160.tgz"
    pack(made, archive)
    there = {"160px": (served[1] + archive.name, md5_of(archive))}
    monkeypatch.setattr(Imagenette, "_ARCHIVES", there)
    get = functools.partial(imagenette, stored=32, cache=str(tmp_path / "cache"))

    (tmp_path / "down").mkdir()
    with pytest.raises(ValueError, match=r"down: is empty; must contain train/ and val/ .* \(99 MB\)"):
        get(str(tmp_path / "down"))
    downloaded = get(str(tmp_path / "down"), download=True)
    assert downloaded.classes == (
        "tench (n01440764)",
        "English springer (n02102040)",
        "cassette player (n02979186)",
    )
    assert (len(downloaded.train), len(downloaded.test)) == (9, 6)
    assert sorted(os.listdir(tmp_path / "down")) == [".actbench.lock", "imagenette2-160"]

    monkeypatch.setattr(Imagenette, "_ARCHIVES", {"160px": (NOBODY + archive.name, md5_of(archive))})
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / archive.name).write_bytes(archive.read_bytes())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / archive.name).write_bytes(archive.read_bytes()[:3000])
    for root in (tmp_path / "packed", made, made.parent):
        again = get(str(root))
        assert again.fingerprint == downloaded.fingerprint, root
        assert torch.equal(again.store.samples, downloaded.store.samples)
    with pytest.raises(ValueError, match=f"^root={tmp_path / 'broken'}: cannot unpack {archive.name}"):
        get(str(tmp_path / "broken"))
    assert not (tmp_path / "broken" / "imagenette2-160").exists()
