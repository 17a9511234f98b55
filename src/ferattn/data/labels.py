"""One vocabulary of emotions, and the names and orders under which the datasets know them.

Every dataset of ferattn numbers its classes in the order of ``EMOTIONS``, so that a model trained on one can
be read on another. The first seven are FER2013's own numbering (its CSV files), which is also the order of
Chap's confusion matrix; contempt exists in CK+ only and comes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ferattn.errors import InvalidOption, UnknownChoice, choose

__all__ = [
    "CKPLUS_CODES",
    "EMOTIONS",
    "FER2013_CLASSES",
    "JAFFE_CODES",
    "KAGGLE_FOLDER_ORDER",
    "canonical",
    "in_vocabulary_order",
    "label_map",
]

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral", "contempt")
"""The vocabulary, in the order in which every dataset of ferattn numbers its classes."""

FER2013_CLASSES = EMOTIONS[:7]
"""FER2013's seven classes in the order of the numbers 0 to 6 of its CSV files."""

KAGGLE_FOLDER_ORDER = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
"""The order in which torchvision's ``ImageFolder`` numbers the Kaggle folders of FER2013 (alphabetical)."""

CKPLUS_CODES = {
    0: "neutral",
    1: "angry",
    2: "contempt",
    3: "disgust",
    4: "fear",
    5: "happy",
    6: "sad",
    7: "surprise",
}
"""The numbers in CK+'s ``*_emotion.txt`` files."""

JAFFE_CODES = {
    "AN": "angry",
    "DI": "disgust",
    "FE": "fear",
    "HA": "happy",
    "NE": "neutral",
    "SA": "sad",
    "SU": "surprise",
}
"""The two letters in the middle of JAFFE's file names."""

_ALIASES = {
    **{name: name for name in EMOTIONS},
    "anger": "angry",
    "disgusted": "disgust",
    "afraid": "fear",
    "fearful": "fear",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "neutrality": "neutral",
    "contemptuous": "contempt",
    **{code.lower(): name for code, name in JAFFE_CODES.items()},
}


def canonical(word: str) -> str:
    """The vocabulary's name for an emotion that a dataset spells its own way.

    Raises:
        UnknownChoice: If the word is no emotion of the vocabulary.

    >>> canonical("Happiness"), canonical("AN"), canonical("anger")
    ('happy', 'angry', 'angry')
    """
    folded = word.strip().lower() if isinstance(word, str) else word
    return choose(_ALIASES, folded, "emotion")


def in_vocabulary_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names without repetition: emotions in the vocabulary's order, or any other names alphabetically.

    >>> in_vocabulary_order(["neutral", "angry", "neutral"])
    ('angry', 'neutral')
    >>> in_vocabulary_order(["7", "10", "angry"])
    ('10', '7', 'angry')
    """
    unique = set(names)
    if unique <= set(EMOTIONS):
        return tuple(name for name in EMOTIONS if name in unique)
    return tuple(sorted(unique))


def label_map(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...]:
    """For each class of ``source``, its number in ``target``; -1 where ``target`` leaves the class out.

    Args:
        source: The classes in the order in which labels are numbered now.
        target: The classes wanted, in the order wanted.

    Raises:
        UnknownChoice: If ``target`` asks for a class that ``source`` does not have.
        InvalidOption: If a class is named twice in either.

    >>> label_map(FER2013_CLASSES, KAGGLE_FOLDER_ORDER)
    (0, 1, 2, 3, 5, 6, 4)
    >>> label_map(FER2013_CLASSES, ["happy", "contempt"])
    Traceback (most recent call last):
    ...
    ferattn.errors.UnknownChoice: the data has no class 'contempt'; it has: angry, ..., neutral.
    """
    for what, names in (("source", source), ("target", target)):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise InvalidOption(f"the {what} classes name {', '.join(twice)} twice: {', '.join(names)}.")
    for name in target:
        if name not in source:
            raise UnknownChoice(f"the data has no class {name!r}; it has: {', '.join(source)}.")
    number = {name: position for position, name in enumerate(target)}
    return tuple(number.get(name, -1) for name in source)
