"""Check what Hydra composed before anything is built from it: every key is read by something, none is missing."""

import inspect
import posixpath
import re
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from runners.words import choices, no_such_name

COMPONENTS = {"activation": "relu", "task": "digits", "network": "mlp", "runner": "train"}  # and an example
FACTORIES = ("activation", "network")  # what is made of these is called later, with more arguments
SETTINGS = ("seed", "study", "outputs", "force", "report")
OF_HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
# what run.py, the networks and the tasks pass to a component themselves
GIVEN: dict[str, tuple[str, ...]] = {
    "activation": ("num_features", "channel_dim"),
    "task": ("network",),
    "network": ("act_layer", "input_shape", "num_outputs"),
    "runner": (),
}


def check_composed(cfg: DictConfig, hydra: DictConfig) -> dict[str, str]:
    """The names of the chosen components, of a configuration that has all it needs and nothing beside it.

    Looks at the top level only, which needs no import of torch; ``check_component`` looks at the rest.

    Args:
        cfg: the composed configuration. A key that nothing else reads may serve as a variable, ``${key}``.
        hydra: Hydra's own part of it.

    Raises:
        ValueError: an unknown or missing key, a list of components, or a component without a class.
    """
    names = {}
    for component in COMPONENTS:
        if component not in cfg or component not in hydra.runtime.choices:
            raise ValueError(_not_chosen(component, hydra))
        names[component] = _plain_name(component, hydra.runtime.choices[component])
        config = cfg[component] or {}
        if "_target_" not in config or (component in FACTORIES and "_partial_" not in config):
            needed = "_target_ and _partial_: true" if component in FACTORIES else "_target_"
            raise ValueError(f"{component}={names[component]}: its configuration needs {needed}")
    for key in SETTINGS:
        if key not in cfg:
            raise ValueError(f"{key}: is missing, and every run needs it")
    unknown = [str(key) for key in cfg if key not in (*COMPONENTS, *SETTINGS, "hydra")]
    if unknown:
        text = OmegaConf.to_yaml(cfg) + OmegaConf.to_yaml(hydra)
        for key in unknown:
            if not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", text):
                raise ValueError(no_such_name(key, cfg, (*COMPONENTS, *SETTINGS)))
    return names


def _not_chosen(component: str, hydra: DictConfig) -> str:
    """Why there is no single choice of ``component``: a list was given, or it was deleted."""
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        if override.key_or_group == component and isinstance(values := override.value(), list):
            sweep = f"{component}={','.join(map(str, values))}"
            return f"{override.input_line}: one {component} a run; python run.py -m {sweep} compares several"
    return f"{component}: is missing, and every run needs one, such as {component}={COMPONENTS[component]}"


def _plain_name(component: str, choice: str) -> str:
    """The choice as tables and folders name it: ``activation=relu`` and ``activation=./relu.yaml`` are one."""
    name = posixpath.normpath(str(choice)).removesuffix(".yaml")
    if name.startswith(("..", "/")):
        raise ValueError(f"{component}={choice}: the name of a configuration in {component}/ is needed")
    return name


def own_class(target: str, choice: str, hydra: DictConfig) -> str | None:
    """The name of the class ``target`` if it is not the one that the activation ``choice`` is for.

    Args:
        target: path of the class.
        choice: name of an activation; its configuration may lie anywhere on Hydra's search path.
        hydra: Hydra's own part of the configuration.
    """
    usual = _target(f"activation/{choice}", hydra)
    return None if usual in (None, target) else target.rpartition(".")[2]


def _target(name: str, hydra: DictConfig) -> str | None:
    """The ``_target_`` in a configuration file, or else in those of its defaults list."""
    for source in hydra.runtime.config_sources:
        if source.schema not in ("file", "pkg"):
            continue
        folder = Path(source.path) if source.schema == "file" else files(source.path)
        if (file := folder / f"{name}.yaml").is_file():
            config: Mapping[Any, Any] = cast(DictConfig, OmegaConf.create(file.read_text(encoding="utf-8")))
            break
    else:
        return None
    if (target := config.get("_target_")) is not None:
        return str(target)
    for default in reversed(config.get("defaults", ())):
        if isinstance(default, str) and default != "_self_":
            parent = posixpath.join("/", posixpath.dirname(name), default.partition("@")[0])
            if (target := _target(posixpath.normpath(parent)[1:], hydra)) is not None:
                return target
    return None


def check_component(component: str, config: Any) -> None:
    """Check what a component is made of against what its classes and functions take.

    Raises:
        ValueError: a name that nothing reads, or one that is missing.
    """
    given = GIVEN[component]
    if component == "activation":  # runners.factory checks it; what it is made of is checked here
        for name, value in config.items():
            _check(value, f"{component}.{name}", given)
    else:
        _check(config, component, given)


def _check(tree: Any, place: str, given: Collection[str] | None = None) -> None:
    """Check what has a ``_target_``; ``given`` are the arguments it gets from elsewhere, None if that is not known."""
    if isinstance(tree, list):
        for number, value in enumerate(tree):
            _check(value, f"{place}.{number}")
    elif isinstance(tree, Mapping):
        if isinstance(target := tree.get("_target_"), str):
            _check_call(target, tree, place, given)
        for name, value in tree.items():
            _check(value, f"{place}.{name}")


def _check_call(target: str, tree: Mapping[str, Any], place: str, given: Collection[str] | None) -> None:
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except Exception:  # no such object, which is better said by instantiating it, or one without a signature
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    legal = {p.name: p for p in parameters if p.kind in named and p.name not in (given or ())}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in tree:
        if name not in (*OF_HYDRA, *legal) and (name in (given or ()) or not takes_any):
            raise ValueError(f"{place}.{name}: no such name; {choices(str(name), legal)}")
    if "_args_" in tree or (tree.get("_partial_") and given is None):
        return  # what it is called with is not all in names here
    for p in legal.values():
        if p.default is p.empty and p.name not in tree:
            raise ValueError(f"{place}.{p.name}: is missing, and {target.rpartition('.')[2]} needs it")
