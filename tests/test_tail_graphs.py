"""Compiled tails in an eager model: the same numbers, one graph for each kind of tail, no silent return to eager."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from ferattn import CBAM, create_model
from ferattn.errors import InvalidOption
from ferattn.residual import compile_tails, explain, fuse_tails
from test_residual import pair

# The compiler's own: it hides this one from users, but not from a filter that makes errors of warnings.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every graph that is compiled, by a backend that does not take ten seconds for each."""
    from torch._dynamo.backends.debugging import aot_eager

    found: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(inputs)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield found
    torch._dynamo.reset()


_pair = partial(pair, compile_tails=True)
"""A model with compiled tails and the same model module by module."""


def _agree(compiled: Any, plain: Any, x: torch.Tensor) -> None:
    for training in (True, False):
        results = []
        for model in (compiled, plain):
            out = model.train(training)(x)
            gradients = torch.autograd.grad(out.square().sum(), list(model.parameters()))
            results.append((out, gradients, list(model.buffers())))
        torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param("resnet18_cbam", marks=pytest.mark.slow), "resnetv2_18_se_elu"])
def test_the_numbers_stay_and_blocks_share_graphs(name: str, graphs: list[Any]) -> None:
    compiled, plain = _pair(name)
    assert set(explain(compiled).values()) == {"compiled"}
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    _agree(compiled, plain, x)
    tails = 4 * (2 if name.startswith("resnet18") else 1)  # sizes of maps, and train and eval where a norm differs
    assert len(graphs) == tails
    _agree(compiled, plain, x)
    assert len(graphs) == tails
    assert compiled.layer1[0].bn2.num_batches_tracked == 2 if name.startswith("resnet18") else True


def test_other_batches_compile_once_more_and_other_maps_stay_static(graphs: list[Any]) -> None:
    compiled, plain = _pair("resnet18_se")
    block, expected = compiled.layer1[0].eval(), plain.layer1[0].eval()
    for batch in (2, 3, 5, 4):
        x = torch.randn(batch, 64, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(block(x), expected(x))
    assert len(graphs) == 2
    for side in range(3, 14):  # more than the eight recompilations after which torch.compile gives up
        x = torch.randn(2, 64, side, side, dtype=torch.float64)
        torch.testing.assert_close(block(x), expected(x))
    assert len(graphs) == 2 + 10
    # A size that varies is an input of its own.
    assert not [t for inputs in graphs[2:] for t in inputs if isinstance(t, int | torch.SymInt)]
    assert [t for t in graphs[1] if isinstance(t, int | torch.SymInt)]


def test_every_way_of_calling_has_its_graph(graphs: list[Any]) -> None:
    compiled, plain = _pair("resnet18_cbam", dtype=torch.float32)
    block, expected = compiled.layer1[0].eval(), plain.layer1[0].eval()
    x = torch.randn(2, 64, 6, 6)
    with torch.no_grad():
        for maps in (x, x.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(block(maps), expected(maps))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(block(x.bfloat16()), expected(x.bfloat16()), rtol=0.1, atol=0.1)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), expected(x))
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(block(x), expected(x))
    assert len(block.graphs.made) == 4


def test_blocks_with_other_numbers_have_graphs_of_their_own(graphs: list[Any]) -> None:
    compiled, plain = _pair("resnet18_se_elu")
    blocks, expected = compiled.layer1, plain.layer1
    for block in (blocks[1], expected[1]):
        block.bn2.eps = 0.5
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    for number in (0, 1):
        torch.testing.assert_close(blocks[number].eval()(x), expected[number].eval()(x))
    assert (len(graphs), len(blocks[0].graphs.made)) == (2, 2)
    assert not [number for inputs in graphs for number in inputs if not isinstance(number, torch.Tensor)]
    for block in (blocks[1], expected[1]):
        block.act2.alpha = 0.25
    torch.testing.assert_close(blocks[1](x), expected[1](x))
    assert len(blocks[0].graphs.made) == 3
    for step in range(10):  # as some training schedules change it; torch.compile gives up at the ninth
        for block in (blocks[0].train(), expected[0].train()):
            block.bn2.momentum = 0.5 / (1 + step)
        with torch.no_grad():
            torch.testing.assert_close(blocks[0](x), expected[0](x))
        torch.testing.assert_close(blocks[0].bn2.running_var, expected[0].bn2.running_var)
    assert len(blocks[0].graphs.made) == len(graphs) == 13


def test_copies_share_graphs_and_pickles_start_anew(graphs: list[Any]) -> None:
    compiled, plain = _pair("resnet18_eca")
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    expected = plain.eval()(x)
    twin = copy.deepcopy(compiled.eval())
    torch.testing.assert_close(compiled(x), expected)
    made = len(graphs)
    torch.testing.assert_close(twin(x), expected)
    assert len(graphs) == made == 4
    again = pickle.loads(pickle.dumps(compiled.layer1[0]))
    assert explain(again) == {"": "compiled"}
    maps = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(again(maps), compiled.layer1[0](maps))
    assert list(compiled.state_dict()) == list(create_model("resnet18_eca").state_dict())
    plain.load_state_dict(compiled.state_dict())


def test_it_can_be_taken_back_and_hooks_are_called(graphs: list[Any]) -> None:
    compiled, plain = _pair("resnet18_se")
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    seen: list[Any] = []
    for block in (block for stage in range(1, 5) for block in compiled.get_submodule(f"layer{stage}")):
        block.bn2.register_forward_hook(lambda m, i, out: seen.append(m))
    assert set(explain(compiled).values()) == {"module by module: a hook on a BatchNorm2d"}
    torch.testing.assert_close(compiled(x), plain(x))
    assert (len(seen), len(graphs)) == (8, 0)
    _, model = _pair("resnet18_se")
    assert compile_tails(model) == 8
    fuse_tails(model, True)
    assert set(explain(model).values()) == {"fused"}
    model(x)
    assert not graphs


@pytest.mark.slow
def test_inside_a_compiled_model_nothing_is_compiled_twice(graphs: list[Any]) -> None:
    compiled, plain = _pair("resnet18_se")
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    whole = torch.compile(compiled.eval(), fullgraph=True)
    torch.testing.assert_close(whole(x), plain.eval()(x))
    assert len(graphs) == 1
    assert not compiled.layer1[0].graphs.made


def test_checkpointing_recomputes_compiled_tails(graphs: list[Any]) -> None:
    compiled, plain = _pair("resnet18_cbam")
    compiled.set_grad_checkpointing()
    for block in compiled.modules():  # recomputed norms would count a batch twice, as timm's do
        if isinstance(block, nn.BatchNorm2d):
            block.momentum = 0.0
    for block in plain.modules():
        if isinstance(block, nn.BatchNorm2d):
            block.momentum = 0.0
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(model(x).square().sum(), list(model.parameters())) for model in (compiled, plain)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-6)


def test_contradictions_are_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(InvalidOption, match="compile_tails=True contradicts fused=False"):
            create_model("resnet18_se", fused=False, compile_tails=True)
        with pytest.raises(InvalidOption, match="needs residual blocks that end in"):
            create_model("vgg16_se", compile_tails=True)
        with pytest.raises(InvalidOption, match="compile_tails must be True or False; got 'yes'"):
            create_model("resnet18_se", compile_tails="yes")  # type: ignore[arg-type]
        for fused in (True, "auto"):
            assert set(explain(create_model("resnet18_se", fused=fused, compile_tails=True)).values()) == {"compiled"}
        assert explain(create_model("resnet18_se", compile_tails=False)) == explain(create_model("resnet18_se"))


@pytest.mark.slow
def test_inductor_agrees() -> None:
    torch._dynamo.reset()
    block = _pair("resnet18_se")[0].layer1[0]
    block.se = CBAM(64).double()
    plain = copy.deepcopy(block)
    fuse_tails(plain, False)
    assert explain(block) == {"": "compiled"}
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    _agree(block, plain, x)
