"""Tune settings with the same trials for every activation, then train and report at the common recipe and tuned.

python scripts/tune.py activation=relu,gelu,pwlu task=sines2d 'tune.task.recipe.lr=[1e-3,3e-3,1e-2,3e-2]' 'seed=range(5)'
"""

import argparse
import sys
from collections.abc import Sequence

import _here  # noqa: F401  # before the code that it finds

import run
from runners.tuning import tune

EPILOG = """\
arguments, beside those of python run.py -m:
  tune.<setting>=[V1,V2,...]     values of a setting: task.recipe.<setting>, network.gain, init, omega or first_bias
  tune.<setting>=interval(A,B)   a range on a logarithmic scale
  tune.trials=N                  trials of each activation; without it, all combinations of values
  tune.seed=1000,1001            seeds of the trials, which are not reported
"""


def main() -> None:
    """Run the command line."""
    typed = list(sys.argv)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "arguments", nargs="+", metavar="NAME=VALUE", help="as for python run.py -m, and tune.*"
    )
    arguments = parser.parse_intermixed_args().arguments

    def train(overrides: Sequence[str]) -> bool:
        sys.argv = ["run.py", "--multirun", *overrides]
        return run.all_ran(typed)

    run.main(lambda: tune(arguments, train))


if __name__ == "__main__":
    main()
