import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferattn.data.labels import (
    CKPLUS_CODES,
    EMOTIONS,
    FER2013_CLASSES,
    JAFFE_CODES,
    KAGGLE_FOLDER_ORDER,
    canonical,
    in_vocabulary_order,
    label_map,
)
from ferattn.errors import InvalidOption, UnknownChoice


def test_the_orders_hold_the_same_seven_emotions():
    assert sorted(FER2013_CLASSES) == list(KAGGLE_FOLDER_ORDER)
    assert set(JAFFE_CODES.values()) == set(FER2013_CLASSES)
    assert set(CKPLUS_CODES.values()) == set(EMOTIONS) == {*FER2013_CLASSES, "contempt"}
    # The published numbering of fer2013.csv and of CK+'s emotion files.
    assert FER2013_CLASSES == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert [CKPLUS_CODES[code] for code in (1, 2, 5, 7)] == ["angry", "contempt", "happy", "surprise"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["Anger", "AN", " angry "], "angry"),
        (["Happiness", "HAPPY", "HA", "joy"], "happy"),
        (["sadness", "SA"], "sad"),
        (["neutral", "NE"], "neutral"),
    ],
)
def test_the_datasets_spellings_are_known(words, name):
    assert {canonical(word) for word in words} == {name}


@pytest.mark.parametrize("word", ["hapy", "", "7", None])
def test_a_word_that_is_no_emotion_is_one_error(word):
    with pytest.raises(UnknownChoice, match=r"emotion.*Options: angry"):
        canonical(word)


@given(st.permutations(FER2013_CLASSES), st.permutations(FER2013_CLASSES))
def test_mapping_there_and_back_changes_nothing(a, b):
    there, back = label_map(a, b), label_map(b, a)
    assert [back[there[label]] for label in range(7)] == list(range(7))
    assert all(b[there[label]] == a[label] for label in range(7))


def test_left_out_classes_map_to_minus_one_and_missing_ones_are_an_error():
    assert label_map(("a", "b", "c"), ("c", "a")) == (1, -1, 0)
    with pytest.raises(UnknownChoice, match="no class 'contempt'"):
        label_map(FER2013_CLASSES, EMOTIONS)
    with pytest.raises(InvalidOption, match="happy twice"):
        label_map(FER2013_CLASSES, ["happy", "happy"])


@given(st.lists(st.sampled_from(EMOTIONS)))
def test_vocabulary_order_ignores_how_names_came(names):
    assert in_vocabulary_order(names) == in_vocabulary_order(reversed(names))
    assert list(in_vocabulary_order(names)) == sorted(set(names), key=EMOTIONS.index)
