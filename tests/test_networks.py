"""Networks: the group `network`, other libraries' models, starting weights, and what does not fit together."""

from pathlib import Path

import pytest
import torch
from conftest import config, make_factory
from hydra.utils import instantiate
from torch import nn

from activations.base import Activation
from runners.compose import component_names
from runners.optim import sites
from tasks.networks.build import load_weights

NETWORKS = component_names("network")


def make_network(
    name: str, *overrides: str, shape=(3, 32, 32), outputs: int = 7, activation: str = "prelu"
) -> nn.Module:
    factory = instantiate(config("task=digits", f"network={name}", *overrides).network)
    return factory(make_factory(activation), shape, outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_group_takes_images_and_an_activation(name: str) -> None:
    if name == "timm":
        pytest.importorskip("timm")
    network = make_network(name).eval()
    units = sites(network)
    assert len(units) > 0
    assert all(type(unit).__name__ == "PReLU" for unit in units.values())
    with torch.no_grad():
        out = network(torch.rand(2, 3, 32, 32))
    assert out.shape[:2] == (2, 7)
    assert out.shape[2:] in ((), (32, 32))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_key_of_a_network_is_listed(name: str) -> None:
    keys = set(config("task=digits", f"network={name}").network)
    assert {"_target_", "_partial_", "model", "sites", "weights"} <= keys


def test_sites_of_a_network_of_our_own_are_chosen_by_the_swap() -> None:
    everywhere = sites(make_network("resnet8"))
    first = sites(make_network("resnet8", "network.sites=first:2"))
    assert list(first) == list(everywhere)[:2]
    assert all(isinstance(unit, Activation) for unit in first.values())


def test_gray_images_reach_a_model_for_color() -> None:
    network = make_network("torchvision", shape=(1, 32, 32)).eval()
    gray = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(gray), network(gray.expand(-1, 3, -1, -1)))


def test_segmentation_models_return_their_map() -> None:
    name = "network.name=lraspp_mobilenet_v3_large"
    network = make_network("torchvision", name, shape=(3, 64, 64)).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 64, 64)).shape == (2, 7, 64, 64)


def test_weights_are_loaded_and_the_classifier_stays_fresh(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(5)
    trained = resnet18(num_classes=1000)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    torch.manual_seed(1)
    network = make_network("torchvision", f"network.weights={tmp_path / 'w.pt'}")
    own = network.state_dict()
    for name, value in trained.state_dict().items():
        assert torch.equal(own[name], value) == (not name.startswith("fc.")), name
    torch.manual_seed(1)
    assert torch.equal(own["fc.weight"], resnet18(num_classes=7).state_dict()["fc.weight"])


def test_weights_of_heads_for_training_only_are_left_out(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    torch.save(nn.Linear(2, 2).state_dict() | {"aux1.weight": torch.ones(1)}, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt", 2)


WEIGHTS = {
    "nothing": (None, "no such file"),
    "text": (b"text", "not a file of weights"),
    "a tensor": (torch.ones(2), "must contain a state_dict"),
    "another network": (
        {"conv.weight": torch.ones(2)},
        "belongs to another network: missing bias, weight; unknown conv",
    ),
    "other shapes": (
        {"0.weight": torch.ones(3, 3), "1.weight": torch.ones(3, 3)},
        "differs in more than the number of classes: 0.weight, 1.weight have another shape",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit(case: str, tmp_path: Path) -> None:
    content, message = WEIGHTS[case]
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    linear = nn.Linear(2, 2)
    network = (
        nn.Sequential(nn.Linear(2, 2, False), nn.Linear(2, 2, False)) if case == "other shapes" else linear
    )
    with pytest.raises(ValueError, match=f"^weights={path}: {message}"):
        load_weights(network, path, 2)


ERRORS = {
    "unknown network": (("network=resnet21",), "network=resnet21: no such network; did you mean resnet"),
    "unknown model": (
        ("network=torchvision", "network.name=resnet19"),
        "network.name=resnet19: no such model of torchvision; did you mean resnet1",
    ),
    "misspelt hyper-parameter": (
        ("+network.widht=3",),
        "network.widht: no such hyper-parameter; SmallCNN takes widths",
    ),
    "hyper-parameter out of range": (
        ("network=resnet20", "network.depth=9"),
        "network.depth=9: must be 6 n + 2",
    ),
    "images for points": (
        ("task=sines2d", "network=resnet20"),
        "the network takes images (C, H, W), but samples of this task have shape (2,)",
    ),
    "points for torchvision": (
        ("task=sines2d", "network=torchvision"),
        "torchvision's models take images of 1 or 3 channels, this task has (2,)",
    ),
    "images that are too small": (
        ("network=torchvision", "network.name=alexnet"),
        "the network cannot take samples of shape (1, 8, 8)",
    ),
    "maps where numbers are wanted": (
        ("network=torchvision", "network.name=lraspp_mobilenet_v3_large"),
        "the network's output for a sample is (10, 8, 8), must be (10,): it is for another kind of task",
    ),
    "a size that a model refuses": (
        ("network=torchvision", "network.name=maxvit_t"),
        "network.name=maxvit_t: ",
    ),
    "a number for a name": (
        ("network=torchvision", "network.name=5"),
        "network.name=5: no such model of torchvision",
    ),
    "a number for weights": (("network.weights=3",), "network.weights=3: no such file"),
    "sites": (("network.sites=some",), "sites=some"),
    "a number for sites": (("network.sites=3",), "network.sites=3: "),
}


@pytest.mark.parametrize("case", ERRORS)
def test_one_line(case: str, cli, tmp_path: Path) -> None:
    overrides, message = ERRORS[case]
    run = cli(*overrides, "runner=smoke")
    assert run.returncode == 1
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert message in run.stderr
    assert not [*(tmp_path / "outputs").glob("*/[!.]*")]  # but for locks


def test_a_network_of_another_library_end_to_end(cli, tmp_path: Path) -> None:
    command = ("activation=prelu", "network=torchvision", "network.name=shufflenet_v2_x0_5", "runner=smoke")
    run = cli(*command)
    assert run.returncode == 0, run.stderr
    folder = next((tmp_path / "outputs").glob("main/digits/prelu/*"))
    assert "activations replaced" in (folder / "log.txt").read_text()
    assert '"network": "torchvision:shufflenet_v2_x0_5"' in (folder / "record.json").read_text()
