"""The tail of a residual block as one operation: batch norm -> attention -> + shortcut -> activation.

:func:`plain_tail` is the truth, :func:`fused_tail` the same in fewer passes over the maps.
"""

from ferattn.kernels.parts import ACTS, Act, CBAMGate, ECAGate, Gate, Norm, SEGate
from ferattn.kernels.tail import fused_tail, plain_tail

__all__ = ["ACTS", "Act", "CBAMGate", "ECAGate", "Gate", "Norm", "SEGate", "fused_tail", "plain_tail"]
