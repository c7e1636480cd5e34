"""Compose a configuration of conf/ and make its components: an activation, a task, a runner and a cell.

run.py passes what Hydra composed from its command line; all other code calls ``compose`` or ``choose``, which need no
decorator of Hydra and restore its global state. torch is imported only when a component is made.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException, InstantiationException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from runners.cell import Cell, CellSpec
from runners.composed import (
    FACTORIES,
    HYDRA_KEYS,
    check_component,
    check_composed,
    overridden_class_name,
    spellings_of,
)
from runners.errors import format_error, no_such_name
from runners.loggers import make_loggers
from tasks.settings import within

if TYPE_CHECKING:
    from activations.base import Activation
    from tasks.base import Task

CONF = Path(__file__).resolve().parent.parent / "conf"


def component_names(component: str) -> list[str]:
    """Return the names that ``component=NAME`` accepts on the command line, sorted: those of the files in conf/COMPONENT."""
    folder = CONF / component
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def compose(*overrides: str) -> tuple[DictConfig, DictConfig]:
    """Return the configuration for a command line of ``overrides``, and Hydra's part of it.

    Raises:
        HydraException: overrides that cannot be composed; ``runners.errors.format_error`` makes it one line.
    """
    with fresh_hydra(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        hydra_cfg = cfg.pop("hydra")
    return cfg, hydra_cfg


@contextmanager
def fresh_hydra() -> Iterator[None]:
    """Set aside the global state of an application that also uses Hydra, and restore it at the end."""
    classes = (GlobalHydra, JobRuntime, VersionBase)
    instances = Singleton._instances
    saved: dict[type, Singleton] = {cls: instances.pop(cls) for cls in classes if cls in instances}
    try:
        yield
    finally:
        for cls in classes:
            instances.pop(cls, None)
        instances.update(saved)


class Parts:
    """The components of a cell that a composed configuration names; each is made when it is needed.

    Args:
        cfg: the composed configuration.
        hydra_cfg: Hydra's part of it.
        objects: component -> class or function to use instead of its ``_target_``.

    Raises:
        ValueError: an unknown or missing key, a list of components, or a component without a class.
    """

    def __init__(
        self, cfg: DictConfig, hydra_cfg: DictConfig, objects: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        self.cfg, self.objects = cfg, objects or {}
        self.names = check_composed(cfg, hydra_cfg)
        self._files, self._hydra = dict(self.names), hydra_cfg
        self.config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        activation = overridden_class_name(cfg.activation._target_, self.names["activation"], hydra_cfg)
        self.names["activation"] = activation or self.names["activation"]
        # a network of another library is a choice and a name
        model = self.config["network"].get("name")
        self.names["network"] = ":".join(map(str, filter(None, (self.names["network"], model))))

    def cell(self, *, grid: bool = False, caller: str | None = None) -> Cell:
        """Return the cell of this configuration; see ``CellSpec`` and ``Cell`` for arguments and errors.

        Raises:
            ValueError: an operating system without forks and POSIX signals, on which nothing is trained.
        """
        if sys.platform == "win32":
            raise ValueError("training runs on Linux and macOS; on Windows use WSL")
        source = self.objects.get("activation")
        return Cell(self.spec(), force=self.config["force"], grid=grid, caller=caller, source=source)

    def spec(self, config: Mapping[str, Any] | None = None) -> CellSpec:
        """Return what identifies the cell of this configuration, or of another ``config`` of the same components."""
        config = self.config if config is None else config
        return CellSpec.from_config(
            config,
            activation=self.names["activation"],
            task=self.names["task"],
            network=self.names["network"],
            spellings=spellings_of(config, self._files, self._hydra),
        )

    def act_layer(self) -> "partial[Activation]":
        """Return the activation's factory, validated."""
        from runners.factory import validate_act_layer

        return validate_act_layer(self._make("activation"), self.names["activation"])

    def task(self) -> "Task":
        """Return the task with its network."""
        return self._make("task", network=self._make("network"))

    def runner(self) -> Any:
        """Return the runner."""
        return self._make("runner")

    def train(self, cell: Cell) -> dict[str, Any]:
        """Train ``cell`` and return its record.

        Raises:
            ValueError: a setting that a component does not have, or a value that it does not accept.
        """
        cell.loggers = make_loggers(self.cfg.get("logger"))
        runner, act_layer = self.runner(), self.act_layer()
        return runner(act_layer, self.task(), cell)

    def _make(self, component: str, **arguments: Any) -> Any:
        from hydra.utils import instantiate

        check_component(component, self.config[component])
        if component not in self.objects:
            return instantiate(self.cfg[component], **arguments)
        settings = {name: value for name, value in self.config[component].items() if name not in HYDRA_KEYS}
        keywords = instantiate({"_target_": "builtins.dict", **settings}) | arguments
        if component in FACTORIES:
            return partial(self.objects[component], **keywords)
        with within(component, settings):
            return self.objects[component](**keywords)


def choose(
    *,
    settings: Mapping[str, Any] | None = None,
    overrides: str | Sequence[str] = (),
    hyper: Mapping[str, Mapping[str, Any]] | None = None,
    **components: Any,
) -> Parts:
    """Return the components chosen in Python.

    Args:
        settings: values of the top level of the configuration, such as seed.
        overrides: further arguments of the command line.
        hyper: component -> values of its settings.
        components: activation, task, network, runner. Each is a name as on the command line, a class or function, a
            ``functools.partial`` of one, or the dotted path to any of these; None for the default.

    Raises:
        ValueError: an unknown component or setting, or a value that a file cannot hold.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    taken = {*(settings or {}), *(name for name, value in components.items() if value is not None)}
    for override in overrides:
        if (key := override.partition("=")[0].lstrip("+~").partition("@")[0]) in taken:
            raise ValueError(f"{override}: must be passed as the argument {key}=...")
    chosen = {
        name: value for name, value in components.items() if isinstance(value, str) and not _is_path(value)
    }
    objects = {
        name: _resolve(name, value)
        for name, value in components.items()
        if value is not None and name not in chosen
    }
    if "task" in objects and components.get("network") is None:
        raise ValueError(f"task={objects['task'][0].__name__}: has no default network; set network=..., too")
    cfg, hydra_cfg = compose(*(f"{name}={value}" for name, value in chosen.items()), *overrides)
    with open_dict(cfg), read_write(hydra_cfg), open_dict(hydra_cfg):
        for name, value in (settings or {}).items():
            cfg[name] = plain(name, value)
        for component, (target, keywords) in objects.items():
            partially = {"_partial_": True} if component in FACTORIES else {}
            values = {name: plain(f"{component}.{name}", value) for name, value in keywords.items()}
            cfg[component] = {"_target_": f"{target.__module__}.{target.__qualname__}", **partially, **values}
            hydra_cfg.runtime.choices[component] = target.__name__
        for component, hypers in (hyper or {}).items():
            for name, value in hypers.items():
                key = f"{component}.{name}"
                if component not in objects and name not in cfg[component]:
                    raise ValueError(no_such_name(key, cfg[component]))
                cfg[component][name] = plain(key, value)
    return Parts(cfg, hydra_cfg, {component: target for component, (target, _) in objects.items()})


def _is_path(name: str) -> bool:
    """Return whether a string is the dotted path of an object, and not the name of a configuration."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _resolve(component: str, value: Any) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """Return the class or function that ``value`` stands for, and the keywords of a partial."""
    if isinstance(value, str):
        from hydra.utils import get_object

        try:
            value = get_object(value)
        except Exception as error:
            raise ValueError(f"{component}={value}: {format_error(error)}") from error
    keywords: Mapping[str, Any] = {}
    if isinstance(value, partial):
        if value.args:
            raise ValueError(f"{component}={value}: name the arguments, as in partial({component}, init=0.1)")
        value, keywords = value.func, value.keywords
    name = getattr(value, "__qualname__", "<nameless>")
    if not callable(value) or "<" in name or not hasattr(value, "__module__"):
        # What is defined within a function depends on that function's variables, which a record cannot hold.
        legal = "a name, or a class or function that is defined at the top level of a module"
        raise ValueError(f"{component}={value!r}: must be {legal}")
    return value, keywords


def plain(name: str, value: Any) -> Any:
    """Return ``value`` as a file can hold it: numbers, strings, booleans, None, and lists and dicts of these.

    Raises:
        ValueError: any other value.
    """
    try:
        return json.loads(json.dumps(value, default=_scalar))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}={value!r}: must be a number, a string, None, or a list or dict of these"
        ) from error


def _scalar(value: Any) -> Any:
    """Return the Python number in a scalar of numpy, or the text of a path."""
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors of Hydra into the error that caused them, or into a ValueError of one line."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, HydraException | ValueError):
            raise cause from None
        raise ValueError(format_error(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(format_error(error)) from error
