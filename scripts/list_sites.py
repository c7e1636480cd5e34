"""List where a network calls activations: site, kind, channels, shape, and whether a unit can be put there.

python scripts/list_sites.py torchvision:googlenet torchvision:resnet50 timm:convnext_atto [--size 224]
"""

import difflib
import sys
import warnings
from types import ModuleType
from typing import Any

import torch
from _here import command_line
from torch import nn

from activations.swap import find_sites


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "list_sites.py torchvision:resnet50 timm:convnext_atto --size 96")
    parser.add_argument("networks", nargs="+", metavar="LIBRARY:NAME", help="torchvision:NAME or timm:NAME")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images (default: 224)")
    parser.add_argument(
        "--activations",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="classes that count as activations as well",
    )
    parser.add_argument(
        "--shared", choices=("call", "unit"), default="call", help="units for modules that run several times"
    )
    arguments = parser.parse_args()

    warnings.simplefilter("ignore")  # libraries warn of changed defaults, which do not matter here
    if arguments.size < 1:
        sys.exit(f"actbench: --size {arguments.size}: must be an integer >= 1")
    try:
        for name in arguments.networks:
            network = build(name)
            images = torch.randn(1, 3, arguments.size, arguments.size)
            report = find_sites(network, images, activations=arguments.activations, shared=arguments.shared)
            print(f"{name}\n{report}\n")
    except ValueError as error:
        place = "" if str(error).startswith(name) else f"{name}: "
        sys.exit(f"actbench: {place}{error}")


def build(name: str) -> nn.Module:
    """Return the network ``LIBRARY:NAME`` with random weights.

    Raises:
        ValueError: no such library or network, or a library that is not installed.
    """
    library, _, model = name.partition(":")
    if library not in ("torchvision", "timm") or not model:
        raise ValueError(f"{name}: must be torchvision:NAME or timm:NAME")
    try:
        models = library_models(library)
    except ImportError as error:
        raise ValueError(f"{name}: {library} is not installed; pip install {library}") from error
    if model not in models.list_models():
        near = difflib.get_close_matches(model, models.list_models(), n=3)
        raise ValueError(f"{name}: no such network" + (f"; did you mean {', '.join(near)}?" if near else ""))
    if library == "timm":
        return models.create_model(model)
    options: dict[str, Any] = {"weights": None}
    if model in models.list_models(module=models.segmentation) + models.list_models(module=models.detection):
        options["weights_backbone"] = None
    return models.get_model(model, **options)


def library_models(library: str) -> ModuleType:
    """Return the module that lists and builds the library's networks."""
    if library == "timm":
        import timm

        return timm
    import torchvision

    return torchvision.models


if __name__ == "__main__":
    main()
