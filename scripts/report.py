"""Write a study's report (leaderboard and figures) from the files of its cells.

python scripts/report.py outputs/<study> [--baseline ACTIVATION] [--margin M]
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
    parser.add_argument("study", type=Path, help="the study's folder, outputs/<study>")
    parser.add_argument("--baseline", help="activation that the others are compared with (relu if there)")
    parser.add_argument(
        "--margin", type=_margin, help="largest difference that does not matter, in the metric's unit"
    )
    arguments = parser.parse_args()

    from results.report import report

    try:
        report(arguments.study, arguments.baseline, arguments.margin)
    except (ValueError, OSError) as error:
        sys.exit(f"actbench: {error}")


if __name__ == "__main__":
    main()
