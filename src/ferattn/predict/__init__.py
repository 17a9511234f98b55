"""Pictures in, faces with emotions out: a detector, the crop, the network, calibrated probabilities.

>>> import numpy as np
>>> recognizer = EmotionRecognizer.from_pretrained("cnn_se", detector="none")
>>> [face] = recognizer(np.full((48, 48), 127, np.uint8))
>>> list(face.probabilities)
['angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral']
"""

from ferattn.predict.pretrained import Pretrained, open_pretrained, read_shipment
from ferattn.predict.recognizer import EmotionRecognizer, Frame, RecognizedFace, equalise_once, stack_crops

__all__ = [
    "EmotionRecognizer",
    "Frame",
    "Pretrained",
    "RecognizedFace",
    "equalise_once",
    "open_pretrained",
    "read_shipment",
    "stack_crops",
]
