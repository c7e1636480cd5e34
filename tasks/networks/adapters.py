"""Networks of other libraries, by name, with fresh weights."""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def torchvision(input_shape: Sequence[int], num_outputs: int, *, name: str) -> nn.Module:
    """Return a classification or segmentation model of torchvision.

    Args:
        input_shape: (C, H, W); gray images are repeated three times, as all models take color.
        num_outputs: number of classes.
        name: such as resnet18, mobilenet_v2, vit_b_16, deeplabv3_resnet50, lraspp_mobilenet_v3_large.

    Shape:
        (N, C, H, W) to (N, num_outputs), of a segmentation model to (N, num_outputs, H, W).

    Raises:
        ValueError: no such model, or images that are not (C, H, W) with 1 or 3 channels.
    """
    from torchvision import models

    segmentation = set(models.list_models(module=models.segmentation))
    names = set(models.list_models(module=models)) | segmentation
    _check("torchvision", name, names)
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise ValueError(
            f"torchvision's models take images of 1 or 3 channels, this task has {tuple(input_shape)}"
        )
    options: dict[str, Any] = {"weights": None, "num_classes": num_outputs}
    if name in segmentation:
        options |= {"weights_backbone": None}
    elif name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        options |= {"image_size": input_shape[1]}
    elif name == "maxvit_t":
        options |= {"input_size": tuple(input_shape[1:])}
    try:
        network = models.get_model(name, **options)
    except (ValueError, AssertionError) as error:  # sizes that the model does not accept
        raise ValueError(f"name={name}: {error}") from error
    # hooks, as a wrapping module would change the name of every weight and site
    if input_shape[0] == 1:
        network.register_forward_pre_hook(_to_color)
    if name in segmentation:
        network.register_forward_hook(_main_output)
    return network


def timm(input_shape: Sequence[int], num_outputs: int, *, name: str) -> nn.Module:
    """Return a model of timm.

    Args:
        input_shape: (C, H, W).
        num_outputs: number of classes.
        name: such as convnext_atto, mobilenetv3_small_050, resnet10t.

    Shape:
        (N, C, H, W) to (N, num_outputs).

    Raises:
        ValueError: timm is not installed, or has no such model.
    """
    try:
        import timm
    except ImportError:
        raise ValueError("timm is not installed; pip install timm") from None

    _check("timm", name, set(timm.list_models()))
    return timm.create_model(name, pretrained=False, in_chans=input_shape[0], num_classes=num_outputs)


def _to_color(network: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Turn gray images into three equal channels."""
    return tuple(x.expand(-1, 3, -1, -1) for x in args)


def _main_output(network: nn.Module, args: tuple[Tensor, ...], outputs: dict[str, Tensor]) -> Tensor:
    """Return the main output of torchvision's segmentation models."""
    return outputs["out"]


def _check(library: str, name: str, legal: set[str]) -> None:
    """Raise ValueError unless the library has a model called ``name``."""
    if name not in legal:
        near = difflib.get_close_matches(str(name), sorted(legal), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(legal)}, such as "
        hint += "" if near else ", ".join(sorted(legal)[:3])
        raise ValueError(f"name={name}: no such model of {library}; {hint}")
