"""Compare activation functions across tasks.

The code lies in the top-level packages ``activations``, ``tasks``, ``runners`` and ``results``, which a checkout has at its
root. A wheel carries them, with ``conf`` and ``scripts``, inside this package, so that installing puts the one name
``actbench`` into site-packages. Importing ``actbench`` puts their folder first on ``sys.path``: from then on
``from activations.pwlu import PWLU`` works, and a package of one's own of such a name is hidden.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if not (ROOT / "activations").is_dir():  # a checkout has the packages beside this one
    ROOT = ROOT.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
