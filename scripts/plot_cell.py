"""Draw what a finished cell's activations learned: curves over their inputs, gates, coefficients, parameters.

python scripts/plot_cell.py outputs/<study>/<task>/<activation>/<seed>-<cell id>
"""

from pathlib import Path

from _here import command_line, one_line_errors


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "plot_cell.py outputs/demo/digits/prelu/0-0d98cb6cc0")
    parser.add_argument("cell", type=Path, help="the cell's folder; pictures go to its pictures/")
    arguments = parser.parse_args()

    from results.learned import write_cell_figures

    with one_line_errors():
        for path in write_cell_figures(arguments.cell):
            print(path)


if __name__ == "__main__":
    main()
