"""What every attention block promises, and where each agrees with timm's."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import CecaModule, EcaModule, SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from ferattn import CBAM, ECA, SE, ChannelGate, SpatialGate
from ferattn.attention import ATTENTION, adaptive_kernel_size
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from strategies import feature_maps


def _quarter(make: Callable[..., nn.Module], **options: object) -> Callable[[int], nn.Module]:
    """A block reduced to a quarter of its channels, so that every number of channels is possible."""
    return lambda channels: make(channels, reduced_channels=-(-channels // 4), **options)


BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "se": _quarter(SE),
    "se without bias": _quarter(SE, bias=False),
    "eca": ECA,
    "eca circular": partial(ECA, kernel_size=1, circular=True),
    "cbam": _quarter(CBAM),
    "cbam as published": _quarter(CBAM, spatial="bias", refined=False),
    "cbam as woo's code": _quarter(CBAM, spatial="norm"),
    "channel gate": _quarter(ChannelGate),
    "spatial gate": lambda channels: SpatialGate(),
}
CHANNEL_GATES = ("se", "se without bias", "eca", "eca circular", "channel gate")

every_block = pytest.mark.parametrize("name", BLOCKS)


def _block(name: str, channels: int, *, train: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return BLOCKS[name](channels).train(train)


# Laws


@every_block
@settings(deadline=None, max_examples=25)
@given(x=feature_maps())
def test_shape_dtype_and_memory_format_are_kept(name: str, x: Tensor) -> None:
    out = _block(name, x.shape[1])(x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if x.is_contiguous(memory_format=memory_format):
            assert out.is_contiguous(memory_format=memory_format)


@every_block
@settings(deadline=None, max_examples=25)
@given(x=feature_maps())
def test_a_gate_never_amplifies_and_keeps_signs(name: str, x: Tensor) -> None:
    out = _block(name, x.shape[1])(x)
    assert (out.abs() <= x.abs()).all()
    assert (out * x >= 0).all()


@pytest.mark.parametrize("name", CHANNEL_GATES)
@settings(deadline=None, max_examples=25)
@given(x=feature_maps(dtype=torch.float64), seed=st.integers(0, 2**31))
def test_channel_gates_commute_with_spatial_permutations(name: str, x: Tensor, seed: int) -> None:
    block = _block(name, x.shape[1]).double()
    order = torch.randperm(x.shape[2] * x.shape[3], generator=torch.Generator().manual_seed(seed))

    def shuffle(t: Tensor) -> Tensor:
        return t.flatten(2)[:, :, order].unflatten(2, t.shape[2:])

    torch.testing.assert_close(block(shuffle(x)), shuffle(block(x)), rtol=1e-9, atol=1e-9)


@every_block
@settings(deadline=None, max_examples=15)
@given(x=feature_maps(dtype=torch.float64))
def test_samples_do_not_see_each_other_in_evaluation(name: str, x: Tensor) -> None:
    block = _block(name, x.shape[1]).double()
    torch.testing.assert_close(block(x)[:1], block(x[:1]), rtol=1e-9, atol=1e-9)


@every_block
def test_backward_is_deterministic_and_reaches_every_parameter(name: str) -> None:
    def gradients() -> list[Tensor]:
        block = _block(name, 32, train=True)
        x = torch.randn(4, 32, 7, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        block(x).square().sum().backward()
        return [x.grad, *(parameter.grad for parameter in block.parameters())]

    first, second = gradients(), gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in first)


# Parameter counts


@pytest.mark.parametrize(("c", "r"), [(64, 16), (256, 16), (512, 8), (2048, 4), (100, 16)])
def test_parameter_counts_are_their_closed_forms(c: int, r: int) -> None:
    def count(block: nn.Module) -> int:
        return sum(parameter.numel() for parameter in block.parameters())

    reduced = c // r
    se = 2 * c * reduced + reduced + c
    assert count(SE(c, reduction=r)) == se
    assert count(SE(c, reduction=r, bias=False)) == 2 * c * reduced
    assert count(SE(c, reduced_channels=reduced)) == se
    assert count(ECA(c)) == adaptive_kernel_size(c)
    assert count(ECA(c, kernel_size=3)) == 3
    assert count(ECA(c, kernel_size=3, bias=True)) == 4
    assert count(ChannelGate(c, reduction=r)) == se
    assert count(CBAM(c, reduction=r)) == se + 98
    assert count(CBAM(c, reduction=r, spatial="bias")) == se + 98 + 1
    assert count(CBAM(c, reduction=r, spatial="norm")) == se + 98 + 2
    assert count(CBAM(c, reduction=r, bias=False, kernel_size=3)) == 2 * c * reduced + 18
    assert count(SpatialGate(kernel_size=5)) == 50


def test_the_adaptive_kernel_is_the_published_one() -> None:
    assert [adaptive_kernel_size(c) for c in (256, 512, 1024, 2048)] == [5, 5, 5, 7]


@given(c=st.integers(1, 10_000), more=st.integers(1, 10_000), gamma=st.floats(0.5, 8), b=st.floats(0, 8))
def test_the_adaptive_kernel_is_odd_and_never_shrinks(c: int, more: int, gamma: float, b: float) -> None:
    k = adaptive_kernel_size(c, gamma=gamma, b=b)
    assert k % 2 == 1
    assert k <= adaptive_kernel_size(c + more, gamma=gamma, b=b)


@given(c=st.integers(1, 10_000), gamma=st.floats(0.5, 8), b=st.floats(0, 8))
def test_the_adaptive_kernel_is_the_nearest_odd_number(c: int, gamma: float, b: float) -> None:
    t = abs(math.log2(c) / gamma + b / gamma)
    k = adaptive_kernel_size(c, gamma=gamma, b=b)
    assert all(abs(k - t) <= abs(other - t) + 1e-9 for other in range(1, 60, 2))


# timm's blocks as an oracle


def _agree(ours: nn.Module, theirs: nn.Module, channels: int) -> None:
    ours.train()
    theirs.train()
    for b, h, w in ((2, 7, 7), (1, 13, 5)):
        x = torch.randn(b, channels, h, w).requires_grad_()
        y = x.detach().clone().requires_grad_()
        direction = torch.randn(b, channels, h, w)
        out, expected = ours(x), theirs(y)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        ours.zero_grad()
        theirs.zero_grad()
        out.backward(direction)
        expected.backward(direction)
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)
        gradients = {_name(name): parameter.grad for name, parameter in theirs.named_parameters()}
        for name, parameter in ours.named_parameters():
            expected_gradient = gradients.pop(name).reshape(parameter.shape)
            torch.testing.assert_close(parameter.grad, expected_gradient, rtol=1e-5, atol=1e-4)
        assert not gradients


def _name(timm_name: str) -> str:
    return timm_name.replace("spatial.conv.conv", "spatial.conv").replace("spatial.conv.bn", "spatial.norm")


def _copy(theirs: nn.Module, ours: nn.Module) -> None:
    own = ours.state_dict()
    ours.load_state_dict({_name(k): v.reshape(own[_name(k)].shape) for k, v in theirs.state_dict().items()})


def test_se_equals_timms() -> None:
    theirs, ours = SEModule(64, rd_channels=4), SE(64)
    _copy(theirs, ours)
    _agree(ours, theirs, 64)


@pytest.mark.parametrize("channels", [128, 256, 2048])
def test_eca_equals_timms(channels: int) -> None:
    theirs, ours = EcaModule(channels), ECA(channels)
    _copy(theirs, ours)
    _agree(ours, theirs, channels)


def test_circular_eca_equals_timms() -> None:
    theirs, ours = CecaModule(256), ECA(256, circular=True)
    _copy(theirs, ours)
    _agree(ours, theirs, 256)


def test_cbam_equals_timms() -> None:
    theirs, ours = CbamModule(64), CBAM(64, bias=False, spatial="norm")
    _copy(theirs, ours)
    _agree(ours, theirs, 64)


def test_a_fixed_kernel_is_honoured_where_timms_is_not() -> None:
    assert EcaModule(64, kernel_size=9).conv.kernel_size == (3,)
    assert ECA(64, kernel_size=9).kernel_size == 9


# Every option changes something


def _differs(make: Callable[..., nn.Module], base: dict[str, object], changed: dict[str, object]) -> None:
    torch.manual_seed(0)
    a = make(**base)
    torch.manual_seed(0)
    b = make(**{**base, **changed})
    x = torch.randn(2, 32, 9, 9, generator=torch.Generator().manual_seed(3)) + 0.3
    assert not torch.equal(a(x), b(x)), changed


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (SE, {"reduction": 8}),
        (SE, {"reduced_channels": 5}),
        (SE, {"bias": False}),
        (SE, {"identity_init": True}),
        (ECA, {"kernel_size": 7}),
        (ECA, {"gamma": 0.5}),
        (ECA, {"b": 5}),
        (ECA, {"bias": True}),
        (ECA, {"circular": True}),
        (ECA, {"identity_init": True}),
        (CBAM, {"reduction": 8}),
        (CBAM, {"reduced_channels": 5}),
        (CBAM, {"bias": False}),
        (CBAM, {"kernel_size": 3}),
        (CBAM, {"spatial": "bias"}),
        (CBAM, {"spatial": "norm"}),
        (CBAM, {"refined": False}),
        (CBAM, {"identity_init": True}),
        (ChannelGate, {"reduction": 8}),
        (ChannelGate, {"reduced_channels": 5}),
        (ChannelGate, {"bias": False}),
        (ChannelGate, {"identity_init": True}),
    ],
)
def test_every_option_changes_the_output(make: Callable[..., nn.Module], changed: dict[str, object]) -> None:
    _differs(make, {"channels": 32}, changed)


@pytest.mark.parametrize("changed", [{"kernel_size": 3}, {"spatial": "bias"}, {"identity_init": True}])
def test_every_option_of_the_spatial_gate_changes_the_output(changed: dict[str, object]) -> None:
    _differs(SpatialGate, {}, changed)


@pytest.mark.parametrize(
    ("make", "gates"),
    [
        (partial(SE, 64, identity_init=True), 1),
        (partial(ECA, 64, identity_init=True), 1),
        (partial(ChannelGate, 64, identity_init=True), 1),
        (partial(SpatialGate, identity_init=True), 1),
        (partial(SpatialGate, spatial="norm", identity_init=True), 1),
        (partial(CBAM, 64, identity_init=True), 2),
        (partial(CBAM, 64, spatial="norm", identity_init=True), 2),
    ],
)
def test_an_identity_start_is_within_a_quarter_of_a_percent_a_gate(make: Callable[[], nn.Module], gates: int) -> None:
    x = torch.randn(4, 64, 6, 6) * 3
    block = make()
    out = block(x)
    torch.testing.assert_close(out / x, torch.full_like(x, torch.sigmoid(torch.tensor(6.0)).item() ** gates))
    assert ((out - x).abs() <= 0.0025 * gates * x.abs() + 1e-7).all()
    out.square().sum().backward()
    gates_gradient = [p.grad.abs().sum() for p in block.parameters() if p.grad is not None]
    assert sum(gates_gradient) > 0, "an identity start must still learn"


# Ways to run


@every_block
def test_compiles_whole_with_dynamic_shapes(name: str) -> None:
    torch._dynamo.reset()
    block = _block(name, 16)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 16, 6, 6), (3, 16, 9, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@every_block
def test_compiles_with_inductor(name: str) -> None:
    torch._dynamo.reset()
    block = _block(name, 16, train=True)
    compiled = torch.compile(block, fullgraph=True)
    x, y = (torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    out, expected = compiled(x), block(y)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)


@every_block
def test_exports_strictly_with_dynamic_sizes(name: str) -> None:
    block = _block(name, 16)
    sizes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(block, (torch.randn(2, 16, 6, 6),), strict=True, dynamic_shapes=(sizes,))
    x = torch.randn(3, 16, 5, 9)
    torch.testing.assert_close(program.module()(x), block(x), rtol=1e-5, atol=1e-6)


@every_block
def test_traces_without_freezing_sizes(name: str) -> None:
    block = _block(name, 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.trace.*is deprecated")  # a tracer warning still fails
        traced = torch.jit.trace(block, torch.randn(2, 16, 6, 6))
    x = torch.randn(3, 16, 5, 9)
    torch.testing.assert_close(traced(x), block(x), rtol=1e-5, atol=1e-6)


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_and_stays_close(name: str, dtype: torch.dtype) -> None:
    block = _block(name, 16)
    x = torch.randn(2, 16, 6, 6)
    exact = block(x)
    for given_map in (x, x.to(dtype)):
        with torch.autocast("cpu", dtype=dtype):
            out = block(given_map)
        assert out.dtype == given_map.dtype
        torch.testing.assert_close(out.float(), exact, rtol=0.03, atol=0.03)


@every_block
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_runs_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    block = _block(name, 16)
    x = torch.randn(2, 16, 6, 6)
    out = _block(name, 16).to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), block(x), rtol=0.03, atol=0.03)


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SE(8), r"reduction must be .* between 1 and the block's 8 channels; got 16"),
        (lambda: SE(64, reduction=0), "reduction must be"),
        (lambda: SE(64, reduction=2.5), "reduction must be"),
        (
            lambda: SE(64, reduced_channels=65),
            "reduced_channels must lie between 1 and the block's 64 channels; got 65",
        ),
        (lambda: SE(64, reduction=4, reduced_channels=16), "not both"),
        (lambda: SE(64, bias=False, identity_init=True), "needs bias=True"),
        (lambda: SE(0), "channels must be a whole number of at least 1; got 0"),
        (lambda: ECA(64, kernel_size=4), r"kernel_size must be an odd whole number \(1, 3, 5, ...\); got 4"),
        (lambda: ECA(4, kernel_size=9), "kernel_size must be at most 7 for 4 channels; got 9"),
        (lambda: ECA(4, kernel_size=5, circular=True), "at most 4 for 4 channels on a circular axis"),
        (lambda: ECA(64, kernel_size=3, gamma=2), "they would do nothing"),
        (lambda: ECA(64, gamma=0), "gamma must be above 0; got 0"),
        (lambda: ECA(64, bias=False, identity_init=True), "needs a bias"),
        (lambda: CBAM(64, kernel_size=6), "spatial kernel_size must be an odd whole number"),
        (lambda: SpatialGate(kernel_size=0), "spatial kernel_size must be a whole number of at least 1; got 0"),
        (lambda: ECA(64, gamma="2"), "gamma must be a number; got '2'"),
        (lambda: ECA(64, b=float("inf")), "b must be a number; got inf"),
        (lambda: CBAM(8), "reduction must be"),
    ],
)
def test_impossible_options_are_named(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


def test_a_misspelt_kind_of_spatial_gate_lists_the_options() -> None:
    with pytest.raises(UnknownChoice, match=r"did you mean 'norm'.*plain, bias, norm"):
        CBAM(64, spatial="nrom")


@every_block
@pytest.mark.parametrize("bad", [torch.randn(16, 6, 6), torch.randint(0, 9, (2, 16, 6, 6)), torch.randn(2, 16)])
def test_what_is_no_feature_map_is_refused(name: str, bad: Tensor) -> None:
    with pytest.raises(InvalidInput, match="feature map of shape"):
        _block(name, 16)(bad)


def test_the_table_holds_the_three_blocks_of_the_papers() -> None:
    assert ATTENTION == {"se": SE, "eca": ECA, "cbam": CBAM}
    assert all(isinstance(make(64), nn.Module) for make in ATTENTION.values())


def test_blocks_show_what_they_are() -> None:
    shown = [str(make(64)) for make in (SE, ECA, CBAM)]
    assert "reduced_channels=4" in shown[0]
    assert "kernel_size=3" in shown[1]
    assert "refined=True" in shown[2]
    assert all(a != b for a, b in itertools.combinations(shown, 2))
