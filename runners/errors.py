"""Format errors as one line that names the value, the place and the legal values."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tasks.settings import placed

# messages of other libraries on common mistakes -> what to do about them
OTHER_MESSAGES = {
    r"Could not determine home directory": (
        "~: this user has no home folder and HOME is not set; use absolute paths: ACTBENCH_CACHE=FOLDER or "
        "task.data.cache=FOLDER is the folder of decoded data"
    ),
    r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'": (
        "{0}: several values are a grid: add --multirun to your command line, python run.py -m ...; "
        "a list is written as key=[value1,value2]"
    ),
    r"Multiple values for (\S+)\. To override .*: (\S+?)'?$": "{0} has a value already: {0}={1}, without +",
    r"Config group override must be a string or a list\. Got (.*)": (
        "activation, task, network and runner are names, as in activation=relu; one of them is {0} here"
    ),
    r"Error merging override (.*)": "{0}: {cause}",
    r"LexerNoViableAltException: ([^=;]*)=([^;]*)": (
        "{0}={1}: contains special characters of Hydra; put the value in quotes, as in '{0}=\"{1}\"'"
    ),
}

# the end of Hydra's message on a component that cannot be made
FULL_KEY = re.compile(r"\nfull_key: (\S+)\s*$")


def format_error(error: BaseException) -> str:
    """Return a one-line message for the user.

    Examples:
        >>> format_error(ValueError("lr=0: must be a number > 0"))
        'lr=0: must be a number > 0'
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    place = ""
    while error.__cause__ is not None and (
        isinstance(error, InstantiationException)
        # a module that refuses to be imported, such as one that reads an illegal value in the environment
        or (isinstance(error, ImportError) and isinstance(error.__cause__, ValueError))
    ):
        if isinstance(error, InstantiationException) and (key := FULL_KEY.search(str(error))):
            place = key[1]
        error = error.__cause__  # Hydra's error has the place and the cause the reason
    if isinstance(error, MissingConfigException) and error.options is not None:
        path = str(error.missing_cfg_file).removesuffix(".yaml")
        # Groups of Hydra have two parts, as in hydra/launcher; the name in one of ours may contain folders.
        group, _, name = path.rpartition("/") if path.startswith("hydra/") else path.partition("/")
        return f"{group}={name}: no such {group}; {choices(name, error.options)}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        return no_such_name(str(cause.full_key), cause.parent_node)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}"
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    for pattern, message in OTHER_MESSAGES.items():
        if match := re.match(pattern, text):
            return message.format(*match.groups(), cause=cause and str(cause).partition("\n")[0])
    expected = isinstance(error, ValueError | OSError | ImportError | HydraException | OmegaConfBaseException)
    if expected and text:
        return placed(text, place) if isinstance(error, ValueError) else text
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"


def no_such_name(full_key: str, parent: DictConfig, legal: Iterable[str] | None = None) -> str:
    """Return the message for a key that ``parent`` does not have, with the key that was probably meant.

    At the top level that may be a key of the same name further down, as ``task.recipe.lr`` for ``lr``.
    """
    key = full_key.rpartition(".")[2]
    places = _places(cast(dict[str, Any], OmegaConf.to_container(parent))) if key == full_key else ()
    meant = " or ".join(place for place in places if place.endswith(f".{key}"))
    hint = f"did you mean {meant}? " if meant else ""
    return f"{full_key}: no such name; {hint}{choices(key, map(str, parent) if legal is None else legal)}"


def _places(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys except Hydra's."""
    for key, value in tree.items():
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from _places(value, f"{prefix}{key}.")


def choices(wrong: str, legal: Iterable[str]) -> str:
    """Return the legal names in words, with the one that was probably meant."""
    legal = sorted(name for name in legal if not name.startswith("_"))
    near = difflib.get_close_matches(wrong, legal, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}Legal: {', '.join(legal) or 'none'}"
