"""Check what Hydra composed before anything is built from it: every key is used, none is missing."""

import inspect
import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from results.files import flat
from runners.errors import choices, no_such_name

# each component with an example of its names
COMPONENTS = {"activation": "relu", "task": "digits", "network": "mlp", "runner": "train"}
FACTORIES = ("activation", "network")  # components that are called later, with more arguments
SETTINGS = ("seed", "study", "outputs", "force", "grid", "report")
GRID: dict[str, tuple[Any, ...]] = {"failed": ("retry", "skip", "only"), "fail_fast": (True, False)}
MAX_EXACT = 2**53  # whole numbers below it are the same as floats
OPTIONAL = ("logger",)
HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
# arguments of a component that do not come from its configuration
RUNTIME_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "activation": ("num_features", "channel_dim"),
    "task": ("network",),
    "network": ("act_layer", "input_shape", "num_outputs"),
    "runner": (),
    "logger": (),
}


def check_composed(cfg: DictConfig, hydra: DictConfig) -> dict[str, str]:
    """Return the names of the chosen components, after checking that no key is missing or unused.

    Checks the top level only, which needs no import of torch; ``check_component`` checks the rest.

    Args:
        cfg: the composed configuration. A key that is no setting may be a variable, ``${key}``.
        hydra: Hydra's part of it.

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
            raise ValueError(f"{component}={names[component]}: its configuration must have {needed}")
    for key in SETTINGS:
        if key not in cfg:
            raise ValueError(f"{key}: is missing; must be set")
    for key, legal in GRID.items():
        value = OmegaConf.select(cfg, f"grid.{key}")
        if not any(value is one for one in legal) and not (isinstance(value, str) and value in legal):
            words = ", ".join(str(one).lower() for one in legal)
            raise ValueError(f"grid.{key}={value}: must be one of {words}")
    unknown = [str(key) for key in cfg if key not in (*COMPONENTS, *SETTINGS, *OPTIONAL, "hydra")]
    if unknown:
        text = OmegaConf.to_yaml(cfg) + OmegaConf.to_yaml(hydra)
        for key in unknown:
            if not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", text):
                raise ValueError(no_such_name(key, cfg, (*COMPONENTS, *SETTINGS, *OPTIONAL)))
    return names


def _not_chosen(component: str, hydra: DictConfig) -> str:
    """Return the message for a component that is no single name: it is a list, or was deleted."""
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        if override.key_or_group == component and isinstance(values := override.value(), list):
            sweep = f"{component}={','.join(map(str, values))}"
            return (
                f"{override.input_line}: must be one {component}; python run.py -m {sweep} compares several"
            )
    return f"{component}: is missing; must be set, such as {component}={COMPONENTS[component]}"


def _plain_name(component: str, choice: str) -> str:
    """Return the name for tables and folders: ``activation=relu`` and ``activation=./relu.yaml`` have the same."""
    name = posixpath.normpath(str(choice)).removesuffix(".yaml")
    if name.startswith(("..", "/")):
        raise ValueError(f"{component}={choice}: must be the name of a configuration in {component}/")
    return name


def overridden_class_name(target: str, choice: str, hydra: DictConfig) -> str | None:
    """Return the class name if ``_target_`` was overridden, else None.

    Args:
        target: path of the class.
        choice: name of an activation; its configuration may lie anywhere on Hydra's search path.
        hydra: Hydra's part of the configuration.
    """
    usual = _defaults(f"activation/{choice}", _folders(hydra)).get("_target_")
    return None if usual in (None, target) else target.rpartition(".")[2]


def spellings_of(config: Mapping[str, Any], names: Mapping[str, str], hydra: DictConfig) -> dict[str, float]:
    """Return the whole numbers of a configuration that have another spelling, in that one, by dotted names.

    Where a component's own file has a float it is a float, so that ``lr=1`` is ``lr=1.0``; else it is an integer.

    Args:
        config: the resolved configuration.
        names: component -> name of its file.
        hydra: Hydra's part of the configuration.
    """
    spellings: dict[str, float] = {}
    folders = _folders(hydra)
    for component, choice in names.items():
        defaults = flat(_defaults(f"{component}/{choice}", folders))
        for name, value in flat(config[component]).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and name in defaults and abs(value) < MAX_EXACT and value == int(value):
                one = float(value) if isinstance(defaults[name], float) else int(value)
                if type(one) is not type(value):
                    spellings[f"{component}.{name}"] = one
    return spellings


def _folders(hydra: DictConfig) -> list[Traversable]:
    """Return the folders of configurations, first the one that Hydra looks into first."""
    sources = [(source.schema, source.path) for source in hydra.runtime.config_sources]
    return [
        Path(path) if schema == "file" else files(path)
        for schema, path in sources
        if schema in ("file", "pkg")
    ]


def _defaults(name: str, folders: Sequence[Traversable]) -> dict[str, Any]:
    """Return the content of a configuration file, over that of the files in its defaults list of the same group."""
    places = (folder / f"{name}.yaml" for folder in folders)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return {}
    config = _parsed(file.read_text(encoding="utf-8"))
    merged: dict[str, Any] = {}
    for default in config.get("defaults") or ():
        if isinstance(default, str) and default != "_self_":
            parent = posixpath.join("/", posixpath.dirname(name), default.partition("@")[0])
            merged = _merged(merged, _defaults(posixpath.normpath(parent)[1:], folders))
    return _merged(merged, config)


@cache
def _parsed(text: str) -> dict[str, Any]:
    """The content of a configuration file; the cells of a grid share a few of them, and parsing one takes milliseconds."""
    content = OmegaConf.to_container(OmegaConf.create(text))
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**one}
    for name, value in other.items():
        below = merged.get(name)
        merged[name] = (
            _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def check_component(component: str, config: Any) -> None:
    """Check the configuration of a component against the signatures of its classes and functions.

    Raises:
        ValueError: a name that a class or function does not have, or one that is missing.
    """
    runtime = RUNTIME_ARGUMENTS[component]
    if component == "activation":  # runners.factory checks the unit; its parts are checked here
        for name, value in config.items():
            _check(value, f"{component}.{name}", runtime)
    else:
        _check(config, component, runtime)


def _check(tree: Any, place: str, runtime: Collection[str] | None = None) -> None:
    """Check every ``_target_`` in ``tree``; ``runtime`` are arguments from elsewhere, None if they are unknown."""
    if isinstance(tree, list):
        for number, value in enumerate(tree):
            _check(value, f"{place}.{number}")
    elif isinstance(tree, Mapping):
        if isinstance(target := tree.get("_target_"), str):
            _check_call(target, tree, place, runtime)
        for name, value in tree.items():
            _check(value, f"{place}.{name}")


def _check_call(target: str, tree: Mapping[str, Any], place: str, runtime: Collection[str] | None) -> None:
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except Exception:  # no such object, which instantiating reports better, or no signature
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    legal = {p.name: p for p in parameters if p.kind in named and p.name not in (runtime or ())}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in tree:
        if name not in (*HYDRA_KEYS, *legal) and (name in (runtime or ()) or not takes_any):
            raise ValueError(f"{place}.{name}: no such name; {choices(str(name), legal)}")
    if "_args_" in tree or (tree.get("_partial_") and runtime is None):
        return  # some arguments are unknown here
    for p in legal.values():
        if p.default is p.empty and p.name not in tree:
            raise ValueError(f"{place}.{p.name}: is missing; {target.rpartition('.')[2]} takes it")
