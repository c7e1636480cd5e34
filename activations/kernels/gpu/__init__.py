"""The Triton kernels: the same units as the C++ kernels beside this folder, for a GPU.

Nothing here is imported before a tensor on a GPU, or Triton's interpreter, asks for it: ``activations.kernels.library`` says when.

units.py has the formulas of the pointwise units, pointwise.py runs them, ditac.py makes and looks up DiTAC's table, gate.py weighs a sample by its
own statistics, window.py computes FReLU; launch.py cuts tensors into tiles, ops.py shows the kernels to torch.compile.

Gradients of parameters are sums over the whole input. They take two stages and no atomics, so that the same input gives
the same bits: every program of a fixed grid walks over its share of the input, keeps its sums in registers and writes one
row of them; torch adds the rows up, in their order.
"""
