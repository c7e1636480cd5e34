"""Errors in one line that names the value, the place and the legal values."""

import difflib
from collections.abc import Iterable

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
)
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException


def one_line(error: BaseException) -> str:
    """What went wrong, for somebody who can mend it, without line breaks."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__  # Hydra says only where; the cause says what
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
        return f"{group}={name}: no such {group}; {choices(name, error.options)}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        return f"{cause.full_key}: no such name; {choices(str(cause.key), map(str, cause.parent_node))}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}"
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    expected = isinstance(error, ValueError | OSError | ImportError | HydraException | OmegaConfBaseException)
    if expected and text:
        return text
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"


def choices(wrong: str, legal: Iterable[str]) -> str:
    """The legal names, and the one that was probably meant."""
    legal = sorted(name for name in legal if not name.startswith("_"))
    near = difflib.get_close_matches(wrong, legal, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}Legal: {', '.join(legal) or 'none'}"
