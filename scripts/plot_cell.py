"""Draw what a finished cell's activations learned: curves over their inputs, gates, coefficients, parameters.

python scripts/plot_cell.py outputs/<study>/<task>/<activation>/<seed>-<cell id>
"""

import argparse
import sys
from pathlib import Path

import _here  # noqa: F401  # before the code that it finds


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python scripts/plot_cell.py outputs/demo/digits/prelu/0-0d98cb6cc0",
    )
    parser.add_argument("cell", type=Path, help="the cell's folder; pictures go to its pictures/")
    arguments = parser.parse_args()

    from results.learned import write_cell_figures

    try:
        for path in write_cell_figures(arguments.cell):
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"actbench: {error}")


if __name__ == "__main__":
    main()
