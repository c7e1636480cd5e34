"""Data: sources, cache, augmentation. Downloads are exercised against a server on this machine."""

import functools
import http.server
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data import images
from tasks.data.augment import CropFlip
from tasks.data.cache import cached, key_of_files
from tasks.data.functions import sines2d
from tasks.data.images import cifar10, digits, image_folder


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    ours, theirs = digits(), load_digits()
    assert np.array_equal(ours.images.squeeze(1).numpy(), theirs.images)
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
    found = image_folder(str(tree), cache=str(tmp_path / "cache"))
    assert found.images.shape == (30, 3, 10, 12)
    assert found.images.dtype == torch.uint8
    assert found.classes == tuple(f"class{i}" for i in range(6))
    assert found.labels[found.train].tolist() == [i for i in range(6) for _ in range(4)]
    assert found.labels[found.test].tolist() == list(range(6))
    names = sorted(os.listdir(tree / "train" / "class0"))
    for i, name in enumerate(names):
        expected = np.asarray(Image.open(tree / "train" / "class0" / name).convert("RGB"))
        assert np.array_equal(found.images[i].permute(1, 2, 0).numpy(), expected)


def test_decoding_happens_once_until_the_data_change(tree: Path, tmp_path: Path, monkeypatch) -> None:
    decoded = []
    original = images._decode
    monkeypatch.setattr(images, "_decode", lambda paths: decoded.append(len(paths)) or original(paths))
    cache = str(tmp_path / "cache")

    first = image_folder(str(tree), cache=cache)
    again = image_folder(str(tree), cache=cache)
    assert decoded == [30]
    assert torch.equal(first.images, again.images)
    assert first.fingerprint == again.fingerprint

    # other pixels in a file of the same name and modification time
    path = tree / "train" / "class0" / "1.png"
    status = path.stat()
    Image.open(path).point(lambda value: 255 - value).save(tmp_path / "other.png")
    path.write_bytes((tmp_path / "other.png").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = image_folder(str(tree), cache=cache)
    assert decoded == [30, 30]
    assert changed.fingerprint != first.fingerprint

    (tree / "train" / "class0" / "0.PNG").unlink()
    assert len(image_folder(str(tree), cache=cache).labels) == 29


def test_the_key_changes_with_name_size_and_times(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    key = key_of_files("kind", tmp_path, [path])
    assert key == key_of_files("kind", tmp_path, [path])
    assert key != key_of_files("other", tmp_path, [path])
    os.utime(path, ns=(1, 1))
    assert key != key_of_files("kind", tmp_path, [path])


def test_a_cache_entry_appears_as_a_whole(tmp_path: Path) -> None:
    def fails() -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "cache", "key", fails)
    assert not (tmp_path / "cache" / "key").exists()
    made = cached(tmp_path / "cache", "key", lambda: {"a": np.arange(5), "name": np.array("text")})
    assert made["a"].tolist() == [0, 1, 2, 3, 4]
    assert str(made["name"]) == "text"
    assert sorted(os.listdir(tmp_path / "cache")) == [".key.lock", "key"]


@pytest.mark.parametrize("length", [0, 500])
def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, length: int) -> None:
    build = lambda: {"a": np.arange(1000)}  # noqa: E731
    cached(tmp_path, "key", build)
    (tmp_path / "key" / "a.npy").write_bytes((tmp_path / "key" / "a.npy").read_bytes()[:length])
    assert cached(tmp_path, "key", build)["a"].sum() == 499500


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"task\.data\.cache="):
        cached(tmp_path / "file", "key", lambda: {"a": np.arange(5)})


def test_cropping_is_padding_then_slicing() -> None:
    """Against the textbook way, image by image, with the shifts read off by a ramp."""
    batch = torch.arange(8 * 9, dtype=torch.uint8).view(1, 1, 8, 9).expand(200, 2, 8, 9).contiguous()
    out = CropFlip(padding=3, flip=True)(batch, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(batch[:1].float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    candidates = {}
    for dy in range(7):
        for dx in range(7):
            crop = padded[0, 0, dy : dy + 8, dx : dx + 9]
            candidates[crop.numpy().tobytes()] = (dy, dx, False)
            candidates[crop.flip(1).numpy().tobytes()] = (dy, dx, True)
    assert len(candidates) == 98
    draws = [candidates[image[0].numpy().tobytes()] for image in out]  # KeyError: no crop of the padded image
    assert torch.equal(out[:, 0], out[:, 1])
    assert len(set(draws)) > 70  # drawn per image
    assert 0.35 < np.mean([flipped for *_, flipped in draws]) < 0.65


def test_augmentation_draws_from_its_generator_alone() -> None:
    batch = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    state = torch.get_rng_state()
    one, two = (CropFlip(2)(batch, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_augmentation_of_a_size_zero() -> None:
    batch = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    assert torch.equal(CropFlip(0, flip=False)(batch, torch.Generator()), batch)
    with pytest.raises(ValueError, match="below the images' size"):
        CropFlip(6)(batch, torch.Generator())


def test_sines2d_by_hand() -> None:
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    a = [[9, -7], [-9, 11], [3, 13], [9, 9], [13, 5], [3, 19]]
    w = [0.4, 0.1, 0.15, 0.15, 0.1, 0.1]
    expected = sum(wi * np.sin(ai[0] * 0.3 - ai[1] * 0.7) for wi, ai in zip(w, a, strict=True))
    assert sines2d(x).shape == (1, 1)
    assert sines2d(x).item() == pytest.approx(expected, abs=1e-6)


# torchvision's files -------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small archive in CIFAR-10's format, served on this machine; torchvision is told its checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5((folder / name).read_bytes()).hexdigest()]

    def batch(name: str, count: int) -> list[str]:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return write(name, {"data": data, "labels": [i % 10 for i in range(count)]})

    train = [batch(f"data_batch_{i}", 40) for i in range(1, 6)]
    test = [batch("test_batch", 30)]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = write("batches.meta", {"label_names": names})
    path = tmp_path / "served" / CIFAR10.filename
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """torchvision asks for the file twice and hangs up on the first answer."""

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(path.parent))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{path.name}")
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path.read_bytes()).hexdigest())
        monkeypatch.setattr(CIFAR10, "train_list", train)
        monkeypatch.setattr(CIFAR10, "test_list", test)
        monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
        yield path
        server.shutdown()


def test_cifar10_is_downloaded_only_when_asked(archive: Path, tmp_path: Path) -> None:
    root, cache = str(tmp_path / "root"), str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"task\.data\.download=true fetches"):
        cifar10(root, cache=cache)
    found = cifar10(root, download=True, cache=cache)
    assert found.images.shape == (230, 3, 32, 32)
    assert (len(found.train), len(found.test)) == (200, 30)
    assert found.classes[:2] == ("airplane", "automobile")

    offline = cifar10(root, cache=str(tmp_path / "other cache"))
    assert torch.equal(offline.images, found.images)
    assert offline.fingerprint == found.fingerprint


def test_cifar10_archive_on_disk_is_unpacked(archive: Path, tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/")  # nobody answers there
    root = tmp_path / "root"
    root.mkdir()
    (root / archive.name).write_bytes(archive.read_bytes())
    assert len(cifar10(str(root), cache=str(tmp_path / "cache")).labels) == 230


def test_files_and_folder_of_the_same_images_have_one_fingerprint(archive: Path, tmp_path: Path) -> None:
    found = cifar10(str(tmp_path / "root"), download=True, cache=str(tmp_path / "cache"))
    tree = tmp_path / "tree"
    for split, index in (("train", found.train), ("test", found.test)):
        for i in sorted(index.tolist(), key=lambda i: found.labels[i]):
            folder = tree / split / found.classes[found.labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found.images[i].permute(1, 2, 0).numpy()).save(folder / f"{i:04}.png")
    by_label = torch.cat(
        [index[found.labels[index].argsort(stable=True)] for index in (found.train, found.test)]
    )
    again = cifar10(str(tree), cache=str(tmp_path / "cache"))
    assert torch.equal(again.images, found.images[by_label])


@pytest.mark.parametrize("broken", ["file", "archive", "server"])
def test_broken_torchvision_files_are_said(archive: Path, tmp_path: Path, monkeypatch, broken: str) -> None:
    from torchvision.datasets import CIFAR10

    root = tmp_path / "root"
    if broken == "file":
        cifar10(str(root), download=True, cache=str(tmp_path / "cache"))
        (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"short")
        (root / archive.name).unlink()  # with it the files would be mended
    else:
        monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
        root.mkdir()
        if broken == "archive":
            (root / archive.name).write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"task.data.root={root}: torchvision says: "):
        cifar10(str(root), download=broken == "server", cache=str(tmp_path / "cache"))
