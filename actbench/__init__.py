"""Compare activation functions across tasks, from Python; all public names are imported from here.

``make_activation``, ``make_act_layer``, ``make_task``: make what the names of conf/ stand for.
``fit``, ``load_network``: train a cell, get its trained network.
``load_study``, ``leaderboard``: read a study, compare its activations.
``replace_activations``, ``find_sites``: put activations into any network.
``activation_names``, ``task_names``, ``network_names``: list the names.
``Activation``, ``ActLayer``, ``Task``, ``Recipe``: to derive from, and for annotations.

Importing this is cheap; torch is imported when something is made.

The code is in the top-level packages ``activations``, ``tasks``, ``runners`` and ``results`` at the root of a checkout. A wheel
contains them, with ``conf`` and ``scripts``, inside this package, so that installing adds the single name ``actbench`` to
site-packages. Importing ``actbench`` puts their folder first on ``sys.path``: from then on ``from activations.pwlu import PWLU``
works, and any other package of such a name is hidden.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent
if not (ROOT / "activations").is_dir():  # a checkout has the packages beside this one
    ROOT = ROOT.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from actbench.api import (
        activation_names,
        fit,
        leaderboard,
        load_network,
        load_study,
        make_act_layer,
        make_activation,
        make_task,
        network_names,
        task_names,
    )
    from activations.base import Activation
    from activations.swap import find_sites, replace_activations
    from tasks.base import ActLayer, Recipe, Task

__all__ = [
    "ActLayer",
    "Activation",
    "Recipe",
    "Task",
    "activation_names",
    "find_sites",
    "fit",
    "leaderboard",
    "load_network",
    "load_study",
    "make_act_layer",
    "make_activation",
    "make_task",
    "network_names",
    "replace_activations",
    "task_names",
]
_MODULES = {
    "ActLayer": "tasks.base",
    "Activation": "activations.base",
    "Recipe": "tasks.base",
    "Task": "tasks.base",
    "find_sites": "activations.swap",
    "replace_activations": "activations.swap",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES.get(name, "actbench.api")), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, *globals()]
