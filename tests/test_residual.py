"""Residual blocks with a fused tail are the same blocks: numbers, keys, hooks, copies, compilers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock
from timm.utils import ModelEmaV3
from torch import nn

from ferattn import CBAM, ECA, SE, attach, create_model, swap_activations
from ferattn.errors import InvalidOption
from ferattn.kernels import fused_tail
from ferattn.residual import explain, fuse_tails
from ferattn.shapes import shapes_only

SMALL = "resnet18_cbam"


def pair(name: str, *, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """A model fused, as the options say, and the same model unfused, with norms that leave no branch silent."""
    torch.manual_seed(0)
    fused: Any = create_model(name, **(options or {"fused": True})).to(dtype)
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 0.5)
            nn.init.normal_(module.bias)
    plain = copy.deepcopy(fused)
    fuse_tails(plain, False)
    return fused, plain


def _stem(block: nn.Module) -> tuple[Any, Any]:
    """The first block of a model's first stage and an input for it."""
    return block, torch.randn(2, 64, 6, 6, dtype=torch.float64)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every fused tail that runs."""
    calls: list[int] = []

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return fused_tail(*args, **options)

    monkeypatch.setattr("ferattn.residual.fused_tail", counting)
    return calls


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "resnetv2_18",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("resnetv2_50", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("attention", ["se", "eca", "cbam"])
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_whole_models_agree(backbone: str, attention: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    fused, plain = pair(f"{backbone}_{attention}_{activation}")
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    for training in (True, False):
        results = []
        for model in (fused, plain):
            model.train(training)
            calls.clear()
            out = model(x)
            assert len(calls) == (len(model.attention_sites) if model is fused else 0)
            out.square().sum().backward()
            results.append((out, dict(model.named_parameters()), dict(model.named_buffers())))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-9)
        for name, parameter in results[1][1].items():
            size = float(parameter.grad.abs().max()) + 1
            error = float((results[0][1][name].grad - parameter.grad).abs().max())
            assert error < 1e-8 * size, name
        for name, buffer in results[1][2].items():
            torch.testing.assert_close(results[0][2][name], buffer, rtol=1e-9, atol=1e-9)


def test_the_state_dict_is_the_same() -> None:
    for name in ("resnet18_cbam", "resnetv2_50_se"):
        with shapes_only():
            assert list(create_model(name, fused=True).state_dict()) == list(
                create_model(name, fused=False).state_dict()
            )


def test_the_fused_option_chooses_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    x = torch.randn(2, 1, 48, 48)
    ran = {}
    for fused in ("auto", True, False):
        model: Any = create_model("resnet18_se", fused=fused)
        for training in (True, False):
            calls.clear()
            model.train(training)(x)
            ran[fused, training] = len(calls)
            said = {"fused"} if calls else {text for text in explain(model).values() if text != "fused"}
            assert set(explain(model).values()) == said
    assert ran == {
        ("auto", True): 0, ("auto", False): 0, (True, True): 8, (True, False): 8, (False, True): 0, (False, False): 0
    }  # fmt: skip
    assert {type(block) for block in model.layer1} == {BasicBlock}


@pytest.mark.parametrize("name", ["resnet18", "vgg16_se", "cnn_cbam"])
def test_fused_contradicts_a_model_without_such_a_tail(name: str) -> None:
    with pytest.raises(InvalidOption, match="fused=True needs residual blocks"), torch.device("meta"):
        create_model(name, fused=True)
    with pytest.raises(InvalidOption, match="fused must be 'auto', True or False; got 'atuo'"), torch.device("meta"):
        create_model(name, fused="atuo")


def test_only_the_blocks_with_attention_are_fused() -> None:
    model = create_model("resnet18_se", placement="residual-last", fused=True)
    said = explain(model)
    assert [path for path, text in said.items() if text == "fused"] == ["layer4.1"]
    assert said["layer1.0"] == "module by module: no attention before the addition"


# Where a module is more than its formula


def _block() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", drop_path_rate=0.5)
    attach(model, CBAM)
    fuse_tails(model, True)
    block = model.layer1[0].double()
    assert block.drop_path is None or not block.drop_path.drop_prob
    return block


def _last_block() -> Any:
    model = timm.create_model("resnet18", drop_path_rate=0.5)
    attach(model, SE)
    fuse_tails(model, True)
    return model.layer4[1]


def _nothing(*args: Any) -> None:
    return None


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hook on the norm": (lambda b: b.bn2.register_forward_hook(_nothing), "a hook on a BatchNorm2d"),
    "hook on the attention": (lambda b: b.se.register_forward_hook(_nothing), "a hook on a CBAM"),
    "hook inside": (lambda b: b.se.channel.fc1.register_forward_pre_hook(_nothing), "a hook on a Linear"),
    "backward hook": (lambda b: b.se.channel.fc2.register_full_backward_hook(_nothing), "a hook on a Linear"),
    "hook on the activation": (lambda b: b.act2.register_forward_pre_hook(_nothing), "a hook on a ReLU"),
    "own forward": (lambda b: setattr(b.act2, "forward", torch.relu), "a hook on a ReLU"),
    "synchronised norm": (lambda b: nn.SyncBatchNorm.convert_sync_batchnorm(b), "the norm is a SyncBatchNorm"),
    "foreign norm": (lambda b: setattr(b, "bn2", nn.GroupNorm(4, 64).double()), "the norm is a GroupNorm"),
    "cumulative norm": (lambda b: setattr(b.bn2, "momentum", None), "cumulative average"),
    "foreign activation": (lambda b: setattr(b, "act2", nn.GELU()), "the activation is a GELU"),
    "odd elu": (lambda b: setattr(b, "act2", nn.ELU(-1.0)), "ELU with alpha <= 0"),
    "spatial norm": (lambda b: setattr(b, "se", CBAM(64, spatial="norm").double()), "uses batch statistics"),
    "parametrised": (
        lambda b: nn.utils.parametrizations.weight_norm(b.se.spatial.conv),
        "the attention holds a ParametrizedConv2d",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_more_than_its_formula_runs_module_by_module(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    block, x = _stem(_block())
    assert explain(block) == {"": "fused"}
    apply, reason = CHANGES[change]
    changed = apply(block)
    block = changed if isinstance(changed, BasicBlock) else block
    assert reason in explain(block)[""]
    if change != "synchronised norm":  # which wants a GPU
        plain = copy.deepcopy(block)
        fuse_tails(plain, False)
        torch.testing.assert_close(block(x), plain(x))
    assert not calls


def test_hooks_are_called_with_what_they_would_see() -> None:
    block, x = _stem(_block())
    seen: list[torch.Tensor] = []
    for module in (block.bn2, block.se, block.act2):
        module.register_forward_hook(lambda m, i, out: seen.append(out.clone()))
    out = block(x)
    assert len(seen) == 3
    assert torch.equal(seen[-1], out)


def test_an_active_drop_path_drops() -> None:
    block = _last_block()
    assert explain(block)[""] == "module by module: the drop path is active"
    assert explain(block.eval())[""] == "fused"


def test_a_frozen_norm_is_fused_and_stays_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    block, x = _stem(_block())
    block.bn2.eval()
    plain = copy.deepcopy(block)
    fuse_tails(plain, False)
    before = block.bn2.running_mean.clone()
    torch.testing.assert_close(block(x), plain(x))
    assert calls
    assert torch.equal(block.bn2.running_mean, before)


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": 0.5, "eps": 0.1}]
)
@pytest.mark.parametrize("training", [True, False])
def test_every_option_of_the_norm(options: dict[str, Any], training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    block, x = _stem(_block())
    block.bn2 = nn.BatchNorm2d(64, **options).double()
    plain = copy.deepcopy(block)
    fuse_tails(plain, False)
    for each in (block, plain):
        each.train(training)
    torch.testing.assert_close(block(x), plain(x))
    assert calls
    for name, buffer in plain.bn2.named_buffers():
        torch.testing.assert_close(block.bn2.get_buffer(name), buffer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CBAM(64, bias=False, spatial="bias", refined=False),
        lambda: CBAM(64, spatial="norm", kernel_size=3),
        lambda: SE(64, bias=False),
        lambda: ECA(64, bias=True, circular=True),
    ],
)
def test_every_option_of_the_blocks(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    block, x = _stem(_block())
    block.se = make().double()
    if isinstance(block.se, CBAM) and block.se.spatial.norm is not None:
        nn.init.constant_(block.se.spatial.norm.running_mean, 0.3)
        nn.init.constant_(block.se.spatial.norm.running_var, 2.0)
        nn.init.constant_(block.se.spatial.norm.bias, -0.2)
        block.se.eval()
    plain = copy.deepcopy(block)
    fuse_tails(plain, False)
    for each in (block, plain):
        each(x).square().sum().backward()
    assert calls
    for (name, ours), theirs in zip(block.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


# What users do with blocks


def test_copies_pickles_and_checkpoints() -> None:
    fused, plain = pair("resnet18_cbam_elu")
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    expected = copy.deepcopy(plain)(x)
    torch.testing.assert_close(copy.deepcopy(fused)(x), expected)
    block = pickle.loads(pickle.dumps(fused.layer1[0]))
    assert explain(block) == {"": "fused"}
    ema = ModelEmaV3(fused)
    ema.update(fused)
    assert explain(ema.module) == explain(fused)
    again = create_model("resnet18_cbam_elu", fused=False).double()
    again.load_state_dict(fused.state_dict())
    torch.testing.assert_close(again(x), expected)
    fused.set_grad_checkpointing()
    torch.testing.assert_close(fused(x), expected)


def test_swapping_activations_afterwards_is_seen() -> None:
    block, x = _stem(_block())
    swap_activations(block, "selu")
    plain = copy.deepcopy(block)
    fuse_tails(plain, False)
    torch.testing.assert_close(block(x), plain(x))


def test_train_and_eval_flips_keep_the_statistics_in_step() -> None:
    fused, plain = pair("resnet18_eca")
    for step in range(3):
        x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
        for model in (fused, plain):
            model.train()(x)
        torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
        assert fused.layer4[1].bn2.num_batches_tracked == step + 1


def test_second_derivatives_through_a_model() -> None:
    fused, plain = pair("resnet18_se_elu")
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64, requires_grad=True)
    found = []
    for model in (fused, plain):
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        weight = model.layer1[0].conv1.weight
        found.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # torch's own, on its first jvp
def test_functional_transforms_and_tracers_take_the_modules() -> None:
    fused, plain = pair("resnet18_se", dtype=torch.float32)
    fused.eval(), plain.eval()
    x = torch.randn(2, 1, 48, 48)
    parameters = dict(fused.named_parameters())
    each = torch.func.vmap(lambda one: torch.func.functional_call(fused, parameters, (one[None],))[0])(x)
    torch.testing.assert_close(each, plain(x), rtol=1e-4, atol=1e-4)
    _, tangent = torch.func.jvp(fused, (x,), (torch.ones_like(x),))
    assert tangent.shape == (2, 7)


def test_a_block_in_the_wrong_dtype_fails_as_it_always_did() -> None:
    block, x = _stem(_block())
    block.float().se.double()
    with pytest.raises(RuntimeError, match="dtype"):
        block(x.float())


def test_autocast_agrees_with_the_modules_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    fused, plain = pair(SMALL, dtype=torch.float32)
    x = torch.randn(4, 1, 48, 48)
    expected = copy.deepcopy(plain)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = [(model(x).float() - expected).abs().max().item() for model in (fused, plain)]
    assert len(calls) == 8
    assert errors[0] <= 2 * errors[1]


def test_compiled_models_run_fused_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    fused, plain = pair(SMALL, dtype=torch.float64)
    fuse_tails(fused, "auto")
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    for training in (True, False):
        torch.testing.assert_close(compiled.train(training)(x), plain.train(training)(x), rtol=1e-8, atol=1e-8)
    assert len(graphs) == 2
    applied = [node for node in graphs[0].graph.nodes if "autograd_function_apply" in str(node.target)]
    assert len(applied) == 8


def test_strict_export_holds_nothing_of_ours() -> None:
    fused, _ = pair(SMALL, dtype=torch.float32)
    x = torch.randn(2, 1, 48, 48)
    program = torch.export.export(fused.eval(), (x,), strict=True)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert all(target.startswith("aten.") for target in targets)
    torch.testing.assert_close(program.module()(x), fused(x), rtol=1e-4, atol=1e-4)


def _replica(module: Any) -> Any:
    """A copy as ``nn.DataParallel`` makes it: its weights are attributes, and it has no parameters."""
    copied = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else _replica(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            copied._parameters[name] = None
        else:
            setattr(copied, name, parameter * 1)
    return copied


@pytest.mark.parametrize("attention", ["se", "eca", "cbam"])
def test_a_copy_without_parameters_of_its_own(attention: str) -> None:
    model = create_model(f"resnet18_{attention}", fused=True).eval()
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(_replica(model)(x), model(x))
