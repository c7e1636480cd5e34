"""Where a setting stands in the configuration: errors name the setting alone, and whoever knows the place adds it.

A component says ``padding=-1: must be an integer >= 0``, since it does not know what it is part of. The user reads
``task.augment.crop.padding=-1: ...``: Hydra tells the place of what it makes, and ``within`` adds it to errors raised later.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

_SETTING = re.compile(r"([a-z_][a-z0-9_]*)(?:\.\w+)*(?:[=\[]|: )")


def placed(message: str, place: str, names: Collection[str] | None = None) -> str:
    """Put ``place`` before the setting that a message begins with.

    Args:
        message: such as ``padding=-1: must be ...``; one that begins with anything else stays as it is.
        place: such as ``task.augment.crop``.
        names: of the settings there; None for any.

    Examples:
        >>> placed("padding=-1: must be an integer >= 0", "task.augment.crop")
        'task.augment.crop.padding=-1: must be an integer >= 0'
        >>> placed("data/train/0.png: not a readable image", "task.data")
        'data/train/0.png: not a readable image'
    """
    begins = _SETTING.match(message)
    known = begins is not None and (names is None or begins[1] in names)
    return f"{place}.{message}" if known and place else message


@contextmanager
def within(place: str, names: Collection[str] | None = None) -> Iterator[None]:
    """Put ``place`` before the setting that a ValueError raised meanwhile begins with; arguments as of ``placed``."""
    try:
        yield
    except ValueError as error:
        if (message := placed(str(error), place, names)) == str(error):
            raise
        raise ValueError(message) from error
