"""Compose a configuration of conf/ and make what it names: the one way to an activation, a task, a runner and a cell.

run.py hands over what Hydra composed from its command line; everything else calls ``compose`` or ``choose``, which need no
decorator of Hydra's and leave its global state as it was. torch is imported only when something is made.
"""

import json
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
from runners.composed import FACTORIES, OF_HYDRA, check_component, check_composed, own_class
from runners.words import no_such_name, one_line

if TYPE_CHECKING:
    from activations.base import Activation
    from tasks.base import Task

CONF = Path(__file__).resolve().parent.parent / "conf"


def component_names(component: str) -> list[str]:
    """The names that ``component=NAME`` takes on the command line, sorted: those of the files in conf/COMPONENT."""
    folder = CONF / component
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def compose(*overrides: str) -> tuple[DictConfig, DictConfig]:
    """The configuration that a command line of ``overrides`` stands for, and Hydra's own part of it.

    Raises:
        HydraException: overrides that cannot be composed; ``runners.words.one_line`` says it to a user.
    """
    with _hydra_to_itself(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        own = cfg.pop("hydra")
    return cfg, own


@contextmanager
def _hydra_to_itself() -> Iterator[None]:
    """Take away the global state of an application that uses Hydra as well, and put it back at the end."""
    classes = (GlobalHydra, JobRuntime, VersionBase)
    instances = Singleton._instances
    kept: dict[type, Singleton] = {cls: instances.pop(cls) for cls in classes if cls in instances}
    try:
        yield
    finally:
        for cls in classes:
            instances.pop(cls, None)
        instances.update(kept)


class Parts:
    """The parts of a cell that a composed configuration names; each is made when it is asked for.

    Args:
        cfg: the composed configuration.
        hydra_cfg: Hydra's own part of it.
        own: objects to use for a component instead of what its ``_target_`` leads to.

    Raises:
        ValueError: an unknown or missing key, a list of components, or a component without a class.
    """

    def __init__(
        self, cfg: DictConfig, hydra_cfg: DictConfig, own: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        self.cfg, self.own = cfg, own or {}
        self.names = check_composed(cfg, hydra_cfg)
        self.config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        activation = own_class(cfg.activation._target_, self.names["activation"], hydra_cfg)
        self.names["activation"] = activation or self.names["activation"]
        # networks of other libraries are one choice and a name
        model = self.config["network"].get("name")
        self.names["network"] = ":".join(map(str, filter(None, (self.names["network"], model))))

    def cell(self, *, grid: bool = False, caller: str | None = None) -> Cell:
        """Return the cell of this configuration; see ``CellSpec`` and ``Cell`` for arguments and errors."""
        names = {name: self.names[name] for name in ("activation", "task", "network")}
        spec = CellSpec.from_config(self.config, **names)
        source = self.own.get("activation")
        return Cell(spec, force=self.config["force"], grid=grid, caller=caller, source=source)

    def act_layer(self) -> "partial[Activation]":
        """The activation's factory, tried once."""
        from runners.factory import checked

        return checked(self._made("activation"), self.names["activation"])

    def task(self) -> "Task":
        """The task, with the network that it is to train."""
        return self._made("task", network=self._made("network"))

    def runner(self) -> Any:
        """The runner."""
        return self._made("runner")

    def train(self, cell: Cell) -> dict[str, Any]:
        """Train ``cell``; returns its record.

        Raises:
            ValueError: a name in a component that nothing reads, or a value that it does not accept.
        """
        runner, act_layer = self.runner(), self.act_layer()
        return runner(act_layer, self.task(), cell)

    def _made(self, component: str, **given: Any) -> Any:
        from hydra.utils import instantiate

        check_component(component, self.config[component])
        if component not in self.own:
            return instantiate(self.cfg[component], **given)
        settings = {name: value for name, value in self.config[component].items() if name not in OF_HYDRA}
        keywords = instantiate({"_target_": "builtins.dict", **settings}) | given
        return (
            partial(self.own[component], **keywords)
            if component in FACTORIES
            else self.own[component](**keywords)
        )


def choose(
    *,
    settings: Mapping[str, Any] | None = None,
    overrides: str | Sequence[str] = (),
    hyper: Mapping[str, Mapping[str, Any]] | None = None,
    **components: Any,
) -> Parts:
    """Parts chosen in Python.

    Args:
        settings: values of the top level of the configuration, such as seed.
        overrides: further words of the command line.
        hyper: for a component the values of its settings.
        components: activation, task, network, runner. Each is a name as on the command line, a class or function, a
            ``functools.partial`` of one, or the dotted path to any of these; None for the usual one.

    Raises:
        ValueError: an unknown name of a component or a setting, or a value that cannot be written down.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    taken = {*(settings or {}), *(name for name, value in components.items() if value is not None)}
    for override in overrides:
        if (key := override.partition("=")[0].lstrip("+~").partition("@")[0]) in taken:
            raise ValueError(f"{override}: is an argument of its own, {key}=...")
    chosen = {
        name: value for name, value in components.items() if isinstance(value, str) and not _path(value)
    }
    objects = {
        name: _own(name, value)
        for name, value in components.items()
        if value is not None and name not in chosen
    }
    if "task" in objects and components.get("network") is None:
        raise ValueError(
            f"task={objects['task'][0].__name__}: has no usual network; give network=... as well"
        )
    cfg, hydra_cfg = compose(*(f"{name}={value}" for name, value in chosen.items()), *overrides)
    with open_dict(cfg), read_write(hydra_cfg), open_dict(hydra_cfg):
        for name, value in (settings or {}).items():
            cfg[name] = plain(name, value)
        for component, (own, keywords) in objects.items():
            partially = {"_partial_": True} if component in FACTORIES else {}
            values = {name: plain(f"{component}.{name}", value) for name, value in keywords.items()}
            cfg[component] = {"_target_": f"{own.__module__}.{own.__qualname__}", **partially, **values}
            hydra_cfg.runtime.choices[component] = own.__name__
        for component, given in (hyper or {}).items():
            for name, value in given.items():
                key = f"{component}.{name}"
                if component not in objects and name not in cfg[component]:
                    raise ValueError(no_such_name(key, cfg[component]))
                cfg[component][name] = plain(key, value)
    return Parts(cfg, hydra_cfg, {component: own for component, (own, _) in objects.items()})


def _path(name: str) -> bool:
    """Whether a string is the dotted path of an object, and not the name of a configuration."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _own(component: str, value: Any) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """The class or function behind ``value``, and the keywords that go with it."""
    if isinstance(value, str):
        from hydra.utils import get_object

        try:
            value = get_object(value)
        except Exception as error:
            raise ValueError(f"{component}={value}: {one_line(error)}") from error
    keywords: Mapping[str, Any] = {}
    if isinstance(value, partial):
        if value.args:
            raise ValueError(f"{component}={value}: name the arguments, as in partial({component}, init=0.1)")
        value, keywords = value.func, value.keywords
    name = getattr(value, "__qualname__", "<nameless>")
    if not callable(value) or "<" in name or not hasattr(value, "__module__"):
        # what is defined within a function depends on that function's variables, which no record could tell
        legal = "a name, or a class or function that is defined at the top level of a module"
        raise ValueError(f"{component}={value!r}: {legal} is needed")
    return value, keywords


def plain(name: str, value: Any) -> Any:
    """``value`` as a file can hold it: numbers, words, true and false, None, and lists and dicts of these.

    Raises:
        ValueError: it is something else.
    """
    try:
        return json.loads(json.dumps(value, default=_scalar))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}={value!r}: a number, a word, None, or a list or dict of such is needed"
        ) from error


def _scalar(value: Any) -> Any:
    """The Python number in a scalar of numpy, or the text of a path."""
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let what Hydra wraps or says in paragraphs leave as the error behind it, or as a ValueError of one line."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, Exception) and not isinstance(error.__cause__, HydraException):
            raise error.__cause__ from None
        raise ValueError(one_line(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(one_line(error)) from error
