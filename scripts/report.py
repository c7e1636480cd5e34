"""Write a study's report (the page, leaderboard and figures) from the files of its cells.

python scripts/report.py outputs/<study> [--baseline ACTIVATION] [--margin M]
python scripts/report.py outputs/<study> outputs/<another> --name <both>
"""

import argparse
from pathlib import Path

from _here import command_line, one_line_errors


def _margin(text: str) -> float:
    margin = float(text)
    if not 0 <= margin < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a finite number >= 0")
    return margin


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "report.py outputs/demo")
    parser.add_argument(
        "study", type=Path, nargs="+", help="the study's folder, outputs/<study>; several become one report"
    )
    parser.add_argument("--name", help="of the report on several studies: its folder beside the first")
    parser.add_argument("--baseline", help="activation that the others are compared with (relu if there)")
    parser.add_argument(
        "--margin",
        type=_margin,
        help="largest difference that does not matter, in the metric's unit, a share of errors",
    )
    arguments = parser.parse_args()

    if len(arguments.study) > 1 and arguments.name is None:
        parser.error("several studies: must have a --name for their report")

    from results.report import report

    with one_line_errors():
        report(arguments.study, arguments.baseline, arguments.margin, arguments.name)


if __name__ == "__main__":
    main()
