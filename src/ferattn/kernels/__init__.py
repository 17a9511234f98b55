"""The tail of a residual block as one operation: batch norm -> attention -> + shortcut -> activation.

:func:`plain_tail` is the truth, :func:`fused_tail` the same in fewer passes over the maps: by PyTorch's operations
anywhere, by Triton kernels on CUDA. :func:`explain` says which, :func:`use` forces one.
"""

from ferattn.kernels.dispatch import Decision, explain, use
from ferattn.kernels.parts import ACTS, Act, CBAMGate, ECAGate, Gate, Norm, SEGate
from ferattn.kernels.tail import fused_tail, plain_tail

__all__ = [
    "ACTS",
    "Act",
    "CBAMGate",
    "Decision",
    "ECAGate",
    "Gate",
    "Norm",
    "SEGate",
    "explain",
    "fused_tail",
    "plain_tail",
    "use",
]
