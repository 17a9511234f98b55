"""Attention-augmented convolutional backbones for facial emotion recognition, on PyTorch and timm.

>>> import ferattn
>>> model = ferattn.create_model("resnetv2_50_cbam_elu", num_classes=7, in_chans=1)
>>> str(model.spec), len(model.attention_sites)
('resnetv2_50_cbam_elu', 16)

Importing this package makes its models known to ``timm.create_model`` and ``timm.list_models``.
"""

from importlib.metadata import PackageNotFoundError, version

from ferattn.activations import swap_activations
from ferattn.attention import CBAM, ECA, SE, ChannelGate, SpatialGate
from ferattn.factory import create_model, list_models, register
from ferattn.folding import fold_norms
from ferattn.sites import attach
from ferattn.spec import ModelSpec

__all__ = [
    "CBAM",
    "ECA",
    "SE",
    "ChannelGate",
    "ModelSpec",
    "SpatialGate",
    "attach",
    "create_model",
    "fold_norms",
    "list_models",
    "register",
    "swap_activations",
]

try:
    __version__ = version("ferattn")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

for _name in list_models():
    register(_name)
del _name
