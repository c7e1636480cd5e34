"""Logish. Zhu, Zeng, Liu, Zhang: Logish, A New Nonlinear Nonmonotonic Activation Function for Convolutional Neural
Network, Neurocomputing 458, 2021.
"""

from torch import Tensor

from activations.kernels.pointwise import Pointwise


class Logish(Pointwise):
    """y = x log(1 + sigmoid(x)), without parameters; its slope tends to log 2, not to 1."""

    kernel = "logish"
    upcasts = True

    @staticmethod
    def formula(x: Tensor) -> Tensor:
        return x * x.sigmoid().log1p()
