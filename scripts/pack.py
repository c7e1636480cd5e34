"""Pack the finished cells of a study into two files that can be committed: records.csv and cells.tar.xz.

python scripts/pack.py results/<study>     # a study that ran with outputs=results study=<study>

A report reads cells that are packed like those that have folders, and a grid does not train them again.
"""

import argparse
import sys
from pathlib import Path

import _here  # noqa: F401  # before the code that it finds

from results.escape import counted
from results.packed import ARCHIVE, TABLE, pack


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python scripts/pack.py results/reference",
    )
    parser.add_argument("study", type=Path, help="the study's folder")
    study = parser.parse_args().study
    try:
        count = pack(study)
    except (ValueError, OSError) as error:
        sys.exit(f"actbench: {error}")
    size = sum((study / name).stat().st_size for name in (TABLE, ARCHIVE))
    print(f"{counted(count, 'cell')}, {size / 1e6:.1f} MB in {study / TABLE} and {study / ARCHIVE}")


if __name__ == "__main__":
    main()
