"""What every script imports first: it runs the code of the checkout that it lies in, and says so if it cannot.

Without this an installed copy, such as that of another checkout with the same environment, would be imported instead.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

for package in ("activations", "results", "runners", "tasks"):
    spec = find_spec(package)
    if spec is not None and spec.origin and not (code := Path(spec.origin).resolve()).is_relative_to(ROOT):
        print(f"actbench: {sys.argv[0]} runs the code in {code.parents[1]}, not in {ROOT}", file=sys.stderr)
        break
else:
    from results.terminal import print_anything

    print_anything()
