"""One error class a kind of mistake, and messages that name what there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferattn import errors
from ferattn.errors import UnknownChoice, choose, closest


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers(), min_size=1), st.text(max_size=8))
def test_choosing_finds_or_lists_everything(table: dict[str, int], name: str) -> None:
    if name in table:
        assert choose(table, name, "thing") == table[name]
        return
    with pytest.raises(UnknownChoice) as caught:
        choose(table, name, "thing")
    assert f"unknown thing {name!r}" in str(caught.value)
    assert f"Options: {', '.join(table)}." in str(caught.value)


@pytest.mark.parametrize("odd", [None, 3, ["se"], {}])
def test_what_is_no_name_is_unknown_too(odd: object) -> None:
    with pytest.raises(UnknownChoice, match="unknown attention"):
        choose({"se": 1}, odd, "attention")


def test_the_closest_match_ignores_case() -> None:
    assert closest("CBAM", ["se", "cbam"]) == "cbam"
    assert closest("zzz", ["se", "cbam"]) is None


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.UnknownChoice, ValueError),
        (errors.InvalidOption, ValueError),
        (errors.InvalidInput, ValueError),
        (errors.NoSite, ValueError),
        (errors.WeightsMismatch, RuntimeError),
        (errors.MissingDependency, ImportError),
    ],
)
def test_each_is_ours_and_pythons(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, errors.FerattnError)
    assert issubclass(error, builtin)
    assert error.__name__ in errors.__all__
