"""Say what a grid is made of and what it will take, with the overrides of run.py.

python scripts/plan.py 'activation=glob(*)' task=digits,sines2d 'seed=range(5)'
"""

from _here import command_line, one_line_errors

from runners.plan import planned, report


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "plan.py activation=relu,prelu task=digits 'seed=range(5)' --workers 2")
    parser.add_argument("overrides", nargs="*", help="as for python run.py -m")
    parser.add_argument("--workers", type=int, default=1, help="cells that are trained at a time (1)")
    parser.add_argument("--no-measure", action="store_true", help="only count the cells")
    arguments = parser.parse_intermixed_args()
    if arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: must be an integer >= 1")
    with one_line_errors(kinds=Exception):
        for line in report(
            planned(arguments.overrides), workers=arguments.workers, measure=not arguments.no_measure
        ):
            print(line, flush=True)


if __name__ == "__main__":
    main()
