"""The tail's passes as Triton kernels; imported on first use, because importing Triton takes long.

:mod:`~ferattn.kernels.triton.maps` and :mod:`~ferattn.kernels.triton.gates` hold the kernels, each a tile of work
that :mod:`~ferattn.kernels.triton.launch` puts onto a grid; :mod:`~ferattn.kernels.triton.operators` makes PyTorch
operators of them.
"""
