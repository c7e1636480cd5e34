"""What the compiled functions take. ``library`` compares it with the table in the compiled file before it uses any of them.

Letters of arguments: p for a pointer, i for an int64, d for a double, in the order of csrc/.
"""

# How many numbers for each unit each parameter of a pointwise kernel is.
ROWS = {
    "acon": [1, 1, 1],
    "elu": [1, 1, 1],
    "finer": [1, 1],
    "gaussian": [1],
    "gelu_tanh": [],
    "golu": [],
    "group_rational": [6, 4],
    "leaky_relu_squared": [1],
    "logish": [],
    "mish": [],
    "pau": [6, 4],
    "pelu": [1, 1],
    "poly_relu": [3, 1],
    "prelu": [1],
    "relu_squared": [],
    "serf": [],
    "sine": [1],
    "smu": [1, 1],
    "snake": [1],
    "softplus": [1, 1, 1],
    "srelu": [1, 1, 1, 1],
    "star_relu": [1, 1],
    "swish": [1],
    "tanh": [],
    "tanh_exp": [],
    "xielu": [1, 1],
}
# How many more than the first parameter is, whose number of rows varies.
VARYING_ROWS = {"apl": [0, 0], "fourier": [0, 0, 1], "hermite": [0], "npwlu": [0, 0, 1], "staf": [0, 0, 0]}
# The most numbers for each unit that a pointwise kernel takes.
MAX_PARAMS = 40

_GATES = ("statistic", "lines", "mapped_lines", "scale", "acon")
_WINDOW = ("piiiipppppp", "piiiippppppp")
# Letters of a kernel's forward and backward function, by the kernel's name.
_PAIRS = {
    **dict.fromkeys((*ROWS, *VARYING_ROWS), ("iiiipppi", "iiiipppipp")),
    "pwlu": ("iiiipppid", "iiiipppidpp"),
    "ditac": ("ppppippipp", "ppppippipppp"),
    "cpab": ("iipppp", "iipppppp"),
    "window": _WINDOW,
    "window_light": _WINDOW,
    "squeeze": ("iiiii" + 10 * "p", "iiiii" + 15 * "p"),
    "norm_gate": ("iiid" + 9 * "p", "iiid" + 13 * "p"),
}
DTYPES = ("f32", "f64")
# Letters by the name of the function, and the constants that both sides must agree on.
TABLE: dict[str, str] = {
    **{
        f"{name}_{dtype}_{way}": letters
        for name, pair in _PAIRS.items()
        for dtype in DTYPES
        for way, letters in zip(("forward", "backward"), pair, strict=True)
    },
    **{f"gate_{name}_{dtype}": "iiiiiiippppppipid" for name in _GATES for dtype in DTYPES},
    "MAX_PARAMS": str(MAX_PARAMS),
}


def differences(compiled: str) -> list[str]:
    """Return where the table of a compiled file, lines of a name and letters or a value, differs from ``TABLE``."""
    found = dict(line.split(" ", 1) for line in compiled.splitlines())
    return [
        f"{name} is {found.get(name, 'missing')} instead of {TABLE.get(name, 'missing')}"
        for name in sorted(TABLE.keys() | found.keys())
        if found.get(name) != TABLE.get(name)
    ]
