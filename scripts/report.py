"""Write a study's report (leaderboard and figures) from the files of its cells.

python scripts/report.py outputs/<study> [--baseline ACTIVATION]
"""

import argparse
import sys
from pathlib import Path

import _here  # noqa: F401  # before the code that it finds


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python scripts/report.py outputs/demo",
    )
    parser.add_argument("study", type=Path, help="the study's folder, outputs/<study>")
    parser.add_argument("--baseline", help="activation that the others are compared with (relu if there)")
    arguments = parser.parse_args()

    from results.report import report

    try:
        report(arguments.study, arguments.baseline)
    except (ValueError, OSError) as error:
        sys.exit(f"actbench: {error}")


if __name__ == "__main__":
    main()
