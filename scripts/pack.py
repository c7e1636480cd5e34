"""Pack the finished cells of a study into two files that can be committed: records.csv and cells.tar.xz.

python scripts/pack.py results/<study>     # a study that ran with outputs=results study=<study>

A report reads cells that are packed like those that have folders, and a grid does not train them again.
"""

from pathlib import Path

from _here import command_line, one_line_errors

from results.escape import counted
from results.packed import ARCHIVE, TABLE, pack


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "pack.py results/reference")
    parser.add_argument("study", type=Path, help="the study's folder")
    study = parser.parse_args().study
    with one_line_errors():
        count = pack(study)
    size = sum((study / name).stat().st_size for name in (TABLE, ARCHIVE))
    print(f"{counted(count, 'cell')}, {size / 1e6:.1f} MB in {study / TABLE} and {study / ARCHIVE}")


if __name__ == "__main__":
    main()
