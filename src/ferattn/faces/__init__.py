"""Faces: find them in any picture and cut them out the way the papers do.

>>> import numpy as np
>>> from ferattn.faces import crop, detect
>>> picture = np.zeros((48, 48), np.uint8)
>>> [face] = detect(picture, "none")
>>> crop(picture, face, size=80).shape
(80, 80)
"""

from ferattn.faces.crops import crop
from ferattn.faces.detectors import DETECTORS, detect, make_detector, pick
from ferattn.faces.face import Detector, Face
from ferattn.faces.illumination import (
    ILLUMINATION,
    emboss,
    gamma_equalise,
    histogram_equalise,
    illuminate,
    local_binary_pattern,
)
from ferattn.faces.pictures import read_picture
from ferattn.faces.video import FaceTracker, read_video

__all__ = [
    "DETECTORS",
    "ILLUMINATION",
    "Detector",
    "Face",
    "FaceTracker",
    "crop",
    "detect",
    "emboss",
    "gamma_equalise",
    "histogram_equalise",
    "illuminate",
    "local_binary_pattern",
    "make_detector",
    "pick",
    "read_picture",
    "read_video",
]
