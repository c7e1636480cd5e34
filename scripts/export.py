"""Export the trained network of a finished cell to ONNX, and compare it in ONNX Runtime with torch.

python scripts/export.py outputs/<study>/<task>/<activation>/<seed>-<cell id>     # trained with runner.keep=weights
"""

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from _here import command_line, one_line_errors

from results.files import BEST_ONNX, ONNX, atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 16  # of the validation split, on which both are compared
TOLERANCE = 1e-4  # of the outputs, relative to the largest one where that is above 1
ROUNDING = 4.0  # times the network's own error in float32, where that is more: several layers of sin(30 x) amplify it


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "export.py outputs/main/digits/prelu/0-0d98cb6cc0 --best")
    parser.add_argument("cell", type=Path, help="the cell's folder")
    parser.add_argument(
        "--best", action="store_true", help="the weights of the best validation epoch, not the last"
    )
    parser.add_argument("--output", type=Path, help=f"default: {ONNX} or {BEST_ONNX} in the cell's folder")
    arguments = parser.parse_args()
    output = arguments.output or arguments.cell / (BEST_ONNX if arguments.best else ONNX)
    with one_line_errors(kinds=Exception):
        print(
            f"{output}: differs from torch by {export_cell(arguments.cell, output, best=arguments.best):.1e}"
        )


def export_cell(cell: Path, output: Path, *, best: bool) -> float:
    """Export the network of a cell; see ``export`` for the rest."""
    from runners.trained import load_trained

    task, network = load_trained(cell, best=best)
    samples = next(iter(task.batches("val")))[0][:SAMPLES]
    return export(network, samples, output)


def export(network: "nn.Module", samples: "Tensor", path: Path) -> float:
    """Write ``network`` in eval mode to ``path``, for any number of samples, and return its largest error.

    What is exported are plain torch operations, no kernels. The input is named ``input`` and the output ``output``.

    Args:
        network: is left in eval mode.
        samples: a batch of at least two.
        path: is written only if the outputs agree.

    Returns:
        the largest difference to torch's output, relative to the largest output where that is above 1.

    Raises:
        ValueError: packages that are not installed, a network that ONNX cannot express, or outputs that differ by more
            than 1e-4 and by more than four times the difference between torch's in float32 and float64.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # which torch.onnx needs
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'actbench[onnx]'") from None
    import torch

    from activations.kernels import library

    network.eval()
    with library.using("reference"), torch.no_grad(), atomic_write(path) as temporary:
        expected = network(samples)
        batch = torch.export.Dim("batch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own future
            try:
                torch.onnx.export(
                    network,
                    (samples,),
                    temporary,
                    input_names=["input"],
                    output_names=["output"],
                    dynamic_shapes=({0: batch},),
                    external_data=False,
                    verbose=False,
                )
            except Exception as error:
                raise ValueError(f"cannot be exported to ONNX: {_reason(error)}") from error
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        largest = 0.0
        for count in (len(samples), 1):
            (found,) = session.run(None, {"input": samples[:count].numpy()})
            largest = max(largest, _error(torch.from_numpy(found), expected[:count]))
        if not largest <= TOLERANCE:
            exact = copy.deepcopy(network).double()(samples.double())
            limit = max(TOLERANCE, ROUNDING * _error(expected, exact))
            if not largest <= limit:
                raise ValueError(f"differs by {largest:.1e} in ONNX Runtime, must be at most {limit:.1e}")
    return largest


def _error(found: "Tensor", expected: "Tensor") -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1))


def _reason(error: BaseException) -> str:
    """Return the first cause of an error of the exporter, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__


if __name__ == "__main__":
    main()
