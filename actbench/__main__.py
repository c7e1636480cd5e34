"""Run the command line of run.py: ``python -m actbench activation=prelu task=digits seed=3``."""

import actbench  # noqa: F401  # makes run importable


def main() -> None:
    """Run the command line."""
    from run import main as run

    run()


if __name__ == "__main__":
    main()
