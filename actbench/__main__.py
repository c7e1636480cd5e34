"""The command ``actbench``: run.py's command line, or a script's.

python -m actbench activation=prelu task=digits seed=3     # run.py
python -m actbench report outputs/main                     # scripts/report.py
"""

import runpy
import sys

import actbench


def main() -> None:
    """Run the script that the first argument names, else run.py."""
    scripts = actbench.ROOT / "scripts"
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name.isidentifier() and (script := scripts / f"{name}.py").is_file():
        sys.path.insert(0, str(scripts))  # as when the file is run: scripts import their siblings
        sys.argv = sys.argv[1:]
        runpy.run_path(str(script), run_name="__main__")
    else:
        from run import main as run

        run()


if __name__ == "__main__":
    main()
