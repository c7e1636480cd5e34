"""Show which cells of a study run, where, and how far they are.

python scripts/status.py outputs/<study> [--watch [SECONDS]]
"""

import sys
import time
from pathlib import Path

from _here import command_line, one_line_errors

from results.schema import RUNNING
from results.status import states, summary


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "status.py outputs/main --watch")
    parser.add_argument("study", type=Path, help="the study's folder, outputs/<study>")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=5.0,
        metavar="SECONDS",
        help="look again every so often (5), until no cell runs",
    )
    arguments = parser.parse_args()
    if arguments.watch is not None and not 0 < arguments.watch < float("inf"):
        parser.error(f"--watch {arguments.watch}: must be a finite number > 0")
    with one_line_errors():
        while True:
            found = states(arguments.study)
            clear = "\033[H\033[J" if arguments.watch and sys.stdout.isatty() else ""
            print(clear + summary(arguments.study, found), flush=True)
            if arguments.watch is None or not any(state.status == RUNNING for state in found):
                break
            time.sleep(arguments.watch)


if __name__ == "__main__":
    main()
