"""What every script imports first: it runs the code of its own checkout, or says that it cannot; and the command line.

Without this an installed copy, such as that of another checkout with the same environment, would be imported instead.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

for package in ("activations", "results", "runners", "tasks"):
    spec = find_spec(package)
    if spec is not None and spec.origin and not (code := Path(spec.origin).resolve()).is_relative_to(ROOT):
        print(f"actbench: {sys.argv[0]} runs the code in {code.parents[1]}, not in {ROOT}", file=sys.stderr)
        break
else:
    from results.terminal import print_anything

    print_anything()


def command_line(doc: str | None, example: str = "") -> argparse.ArgumentParser:
    """Return a parser whose help begins with a script's docstring and ends with an example."""
    epilog = f"example: python scripts/{example}" if example else None
    return argparse.ArgumentParser(description=doc and doc.splitlines()[0], epilog=epilog)


@contextmanager
def one_line_errors(
    *, kinds: type[Exception] | tuple[type[Exception], ...] = (ValueError, OSError)
) -> Iterator[None]:
    """End the script with one line on an error of these ``kinds``."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except kinds as error:
        from runners.errors import format_error

        sys.exit(f"actbench: {format_error(error)}")
