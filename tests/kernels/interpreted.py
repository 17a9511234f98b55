"""The kernels in Triton's interpreter: run by ``test_triton.py`` in a process of its own, whose Triton interprets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from ferattn.kernels import Act, Norm
from ferattn.kernels.triton import launch
from kernels import kernel_laws as laws
from kernels.test_tail import LAYOUTS, Case

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about what is no number

DRAWN = list(laws.grid())
FAST = [drawn for index, drawn in enumerate(DRAWN) if index % 5 == 1 + index // 21 % 5 and max(drawn[0]) < 12]
FAST += [drawn for drawn in DRAWN if drawn[0][1] == 1023 and drawn[1:3] == ("eca", "eval")]
FAST += [drawn for drawn in DRAWN if drawn[0][3] in (12, 17) and drawn[1:3] == ("cbam", "train")]


@pytest.mark.parametrize("drawn", FAST, ids=laws.named)
def test_every_gradient(drawn: laws.Drawn) -> None:
    shape, kind, mode, layout, act, dtype = drawn
    torch.manual_seed(0)
    laws.compare(Case(kind, mode, Act(act, 0.7), shape), dtype, "cpu", layout)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [drawn for drawn in DRAWN if drawn not in FAST], ids=laws.named)
def test_every_gradient_of_the_rest(drawn: laws.Drawn) -> None:
    shape, kind, mode, layout, act, dtype = drawn
    torch.manual_seed(0)
    laws.compare(Case(kind, mode, Act(act, 0.7), shape), dtype, "cpu", layout)


@pytest.mark.parametrize(
    ("kind", "mode", "shape", "layout", "dtype"),
    [
        ("se", "eval", (2, 40, 3, 3), "channels_last", torch.bfloat16),
        ("eca", "none", (2, 8, 4, 4), "contiguous", torch.float32),
        ("cbam", "eval", (2, 40, 5, 4), "channels_last", torch.float32),
        ("cbam-unrefined", "eval", (1, 9, 7, 7), "contiguous", torch.float16),
        ("cbam-bare", "none", (2, 5, 9, 8), "contiguous", torch.float32),
        ("cbam", "eval", (3, 6, 1, 1), "channels_last", torch.float32),
    ],
)
def test_inference(
    kind: str, mode: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    case = Case(kind, mode, Act("silu" if kind == "cbam" else "relu"), shape)
    case.weight[0] = -case.weight[0].abs()
    laws.check_inference(case, dtype, "cpu", layout, monkeypatch)


@pytest.mark.parametrize(("kind", "mode"), [("cbam", "none"), ("cbam", "train"), ("cbam-unrefined", "eval")])
def test_ties_are_shared_as_amax_shares_them(kind: str, mode: str) -> None:
    laws.check_shared_ties(kind, mode, "cpu")


@pytest.mark.parametrize("mode", ["none", "train"])
def test_ties_go_to_the_first_place_on_request(mode: str) -> None:
    laws.check_first_ties(mode, "cpu")


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
def test_nan_and_inf_come_out_where_pytorchs_do(kind: str) -> None:
    values = (float("nan"), float("inf"), float("-inf"))
    for mode, value in zip(laws.MODES, values, strict=True):
        laws.check_no_numbers(kind, mode, value, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
def test_nan_and_inf_come_out_where_pytorchs_do_everywhere(kind: str) -> None:
    for mode, value in itertools.product(laws.MODES, (float("nan"), float("inf"), float("-inf"))):
        laws.check_no_numbers(kind, mode, value, "cpu")


@pytest.mark.parametrize(("kind", "mode"), [("cbam", "train"), ("cbam", "eval"), ("se", "none")])
def test_weights_may_be_strided(kind: str, mode: str) -> None:
    laws.check_strided_weights(kind, mode, "cpu")


def test_a_large_mean_is_not_cancelled_away() -> None:
    laws.check_large_mean("cpu")


def test_the_output_lies_as_the_map_does() -> None:
    laws.check_layout(laws.small_case("cbam", shape=(2, 6, 2, 3)), torch.float32, "cpu")


COUNTS = {"se": (4, 5, 5, 5), "eca": (3, 4, 4, 5), "cbam": (5, 6, 6, 7)}
"""Launches at inference, in eval mode with gradients, in training, and backward."""


@pytest.mark.parametrize("kind", COUNTS)
def test_launches_are_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laws.check_launches(kind, COUNTS[kind], "cpu", monkeypatch)


class _Traffic:
    """Bytes of maps that the interpreted kernels load and store."""

    def __init__(self, maps: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        self.maps, self.bytes, self.of_bits = maps, 0, 0
        load, store = (getattr(InterpreterBuilder, f"create_masked_{name}") for name in ("load", "store"))

        def counted_load(builder: Any, at: Any, mask: Any, *rest: Any) -> Any:
            self._count(at, mask)
            return load(builder, at, mask, *rest)

        def counted_store(builder: Any, at: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._count(at, mask)
            return store(builder, at, value, mask, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
        new = torch.empty_like

        def seen(t: torch.Tensor, **options: Any) -> torch.Tensor:
            found = new(t, **options)
            self.maps += [found] if found.shape == maps[0].shape else []
            return found

        monkeypatch.setattr(torch, "empty_like", seen)

    def _count(self, at: Any, mask: Any) -> None:
        where, wanted = np.broadcast_arrays(at.data, mask.data)
        addresses = where[wanted.astype(bool)]
        size = at.get_element_ty().primitive_bitwidth // 8
        self.of_bits += addresses.size if size == 1 else 0
        for m in self.maps:
            self.bytes += size * int(((addresses >= m.data_ptr()) & (addresses < m.data_ptr() + m.nbytes)).sum())


@pytest.mark.parametrize(
    ("kind", "act", "infer", "train", "last"),
    [
        ("se", "relu", 4, 10, False), ("eca", "relu", 4, 10, True), ("cbam", "relu", 5, 12, True),
        ("cbam", "relu", 5, 12, False), ("eca", "elu", 4, 11, False), ("cbam", "silu", 5, 13, True),
    ],
)  # fmt: skip
def test_walks_over_maps_are_counted(
    kind: str, act: str, infer: int, train: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, with the one value of each channel that a batch's sums are shifted by.

    A ReLU's bits, a sixteenth of a map, are written once and read once instead of the output.
    """
    torch.manual_seed(3)
    monkeypatch.setattr(launch, "ONE_LAUNCH_BYTES", 0)
    memory_format = torch.channels_last if last else torch.contiguous_format
    x, shortcut, dout = (t.bfloat16().contiguous(memory_format=memory_format) for t in torch.randn(3, 2, 32, 8, 8))
    case = laws.small_case(kind, shape=(2, 32, 1, 1))
    gate = case.gate._replace(**{n: t.float() for n, t in case.gate._asdict().items() if isinstance(t, torch.Tensor)})
    traffic = _Traffic([x, shortcut, dout], monkeypatch)
    norm = Norm(torch.ones(32), torch.zeros(32), torch.zeros(32), torch.ones(32), training=False)
    with torch.no_grad():
        laws.by_kernels(x, shortcut, gate, norm, Act(act))
    assert traffic.bytes == infer * x.nbytes
    assert traffic.of_bits == 0
    traffic.bytes = 0
    leaves = (x.requires_grad_(), shortcut.requires_grad_())
    out = laws.by_kernels(x, shortcut, gate, norm._replace(training=True), Act(act))
    torch.autograd.grad(out, leaves, dout)
    shifts = x.itemsize * 32 * (2 + 1)  # each of two samples reads them, and the end of the sums
    assert traffic.bytes == train * x.nbytes + shifts
    assert traffic.of_bits == (2 * x.nbytes // 16 if act == "relu" else 0)


UP_AND_DOWN = {
    "eca": {"pool_kernel": 1, "apply_kernel": -1, "before_kernel": 1, "input_kernel": -1},
    "cbam": {
        "pool_kernel": 1, "spatial_kernel": -1, "apply_kernel": 1,
        "before_kernel": 1, "spread_kernel": -1, "input_kernel": 1,
    },
}  # fmt: skip
"""The passes in their order, and which way each walks: where the one before has ended, the next begins."""


@pytest.mark.parametrize("kind", UP_AND_DOWN)
def test_a_pass_begins_where_the_one_before_has_ended(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the addresses in the map that each pass loads from, tile after tile."""
    names = laws.launches(monkeypatch)
    torch.manual_seed(6)
    x = torch.randn(3, 32, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    load = InterpreterBuilder.create_masked_load
    walks: dict[str, list[int]] = {}

    def noted(builder: Any, at: Any, mask: Any, *rest: Any) -> Any:
        offset = int(at.data.min()) - x.data_ptr()
        if at.data.ndim == 2 and 0 <= offset < x.untyped_storage().nbytes():
            walks.setdefault(names[-1], []).append(offset)
        return load(builder, at, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", noted)
    case = laws.small_case(kind, shape=(3, 32, 1, 1))
    gate = case.gate._replace(**{n: t.float() for n, t in case.gate._asdict().items() if isinstance(t, torch.Tensor)})
    norm = Norm(torch.ones(32), torch.zeros(32), None, None, training=True)
    laws.by_kernels(x, None, gate, norm, Act("relu")).sum().backward()
    assert list(walks) == list(UP_AND_DOWN[kind])
    for name, way in UP_AND_DOWN[kind].items():
        assert len(walks[name]) == 3 if name in ("pool_kernel", "spread_kernel") else len(walks[name]) == 3 * 8, name
        assert walks[name] == sorted(set(walks[name]), reverse=way < 0), name


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
@pytest.mark.parametrize(
    ("act", "shortcut", "maps"),
    [("relu", True, 1), ("elu", True, 2), ("silu", True, 2), ("identity", True, 1), ("silu", False, 1)],
)
def test_few_maps_are_saved_and_little_else(kind: str, act: str, shortcut: bool, maps: int) -> None:
    laws.check_saved(kind, act, shortcut, maps, "cpu")


@pytest.mark.parametrize(
    ("shape", "kind"), [((2, 5, 13, 17), "se"), ((3, 6, 2, 2), "cbam"), ((2, 1023, 3, 2), "eca")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_are_those_of_the_output(shape: tuple[int, ...], kind: str, layout: str) -> None:
    laws.check_bits(kind, shape, layout, "cpu")


def test_zeros_and_nan_pass_what_pytorch_passes() -> None:
    laws.check_threshold("cpu")


@pytest.mark.parametrize("last", [True, False])
def test_saved_maps_may_change_their_layout(last: bool) -> None:
    laws.check_saved_layout(last, "cpu")


def test_a_second_derivative_knows_where_the_output_was_above_zero() -> None:
    laws.check_second_derivative("cpu")


def test_what_is_forced_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    laws.check_paths("cpu", monkeypatch)
