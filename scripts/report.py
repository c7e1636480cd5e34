"""Write a study's report (the page, leaderboard and figures) from the files of its cells.

python scripts/report.py outputs/<study> [--baseline ACTIVATION] [--margin M]
python scripts/report.py outputs/<study> outputs/<another> --name <both>
"""

import argparse
import sys
from pathlib import Path

import _here  # noqa: F401  # before the code that it finds


def _margin(text: str) -> float:
    margin = float(text)
    if not 0 <= margin < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a finite number >= 0")
    return margin


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python scripts/report.py outputs/demo",
    )
    parser.add_argument(
        "study", type=Path, nargs="+", help="the study's folder, outputs/<study>; several become one report"
    )
    parser.add_argument("--name", help="of the report on several studies: its folder beside the first")
    parser.add_argument("--baseline", help="activation that the others are compared with (relu if there)")
    parser.add_argument(
        "--margin", type=_margin, help="largest difference that does not matter, in the metric's unit"
    )
    arguments = parser.parse_args()

    if len(arguments.study) > 1 and arguments.name is None:
        parser.error("several studies: must have a --name for their report")

    from results.report import report

    try:
        report(arguments.study, arguments.baseline, arguments.margin, arguments.name)
    except (ValueError, OSError) as error:
        sys.exit(f"actbench: {error}")


if __name__ == "__main__":
    main()
