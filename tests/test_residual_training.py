"""Fused tails in training loops: parallel processes, averaged copies, checkpoints, repeated steps, other batches."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from ferattn import create_model
from ferattn.residual import explain, fuse_tails


def _pair(name: str = "resnet18_cbam", *, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """A model fused and the same model unfused, the norms' weights drawn so that no branch is silent."""
    torch.manual_seed(0)
    fused: Any = create_model(name, fused=True).to(dtype)
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 0.5)
    plain = copy.deepcopy(fused)
    fuse_tails(plain, False)
    return fused, plain


def _gradients(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))


def _train(model: Any, x: torch.Tensor, steps: int = 2) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


@pytest.mark.parametrize("attention", ["se", "eca", "cbam"])
def test_two_identical_steps_are_equal_to_the_bit(attention: str) -> None:
    fused, _ = _pair(f"resnet18_{attention}", dtype=torch.float32)
    twin = copy.deepcopy(fused)
    x = torch.randn(4, 1, 48, 48)
    ours, again = _train(fused, x), _train(twin, x)
    assert all(torch.equal(tensor, again[key]) for key, tensor in ours.items())


def test_checkpointing_gives_the_same_gradients() -> None:
    fused, plain = _pair()
    fused.set_grad_checkpointing()
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(_gradients(fused, x), _gradients(plain, x), rtol=1e-7, atol=1e-6)


def test_averaged_copies_stay_fused_and_right() -> None:
    results = []
    for model in _pair():
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        torch.manual_seed(1)
        x = torch.randn(3, 1, 48, 48, dtype=torch.float64)
        for _ in range(2):
            _train(model, x, steps=1)
            averaged.update_parameters(model)
        assert explain(averaged.module) == explain(model)
        update_bn([x], averaged)  # sets the norms to a cumulative average while it runs
        results.append(averaged.eval()(x))
    torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-7)


def test_a_saved_state_is_plain_tensors() -> None:
    fused, plain = _pair()
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again: Any = create_model("resnet18_cbam").double()
    again.load_state_dict(state)
    x = torch.randn(2, 1, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(again(x), plain(x))


def test_one_graph_serves_all_batches() -> None:
    torch._dynamo.reset()
    fused, plain = _pair()
    block, expected = fused.layer1[0], plain.layer1[0]
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for batch in (2, 3, 5, 7):
        x = torch.randn(batch, 64, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), expected(x))
        torch.testing.assert_close(block.bn2.running_var, expected.bn2.running_var)
    assert len(graphs) == 2  # for the first batch, and for all others


PROCESS = """
import sys, torch
from torch import distributed, nn
from ferattn import create_model
from ferattn.residual import explain
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model = create_model("resnet18_cbam", fused=True).double()
model.load_state_dict(torch.load(f"{folder}/start.pt"))
assert set(explain(model).values()) == {"fused"}
parallel = nn.parallel.DistributedDataParallel(model)
x = torch.load(f"{folder}/x.pt").chunk(2)[rank]
for step in range(2):  # the second goes through the buckets as they were after the first
    parallel.zero_grad()
    parallel(x).square().sum().backward()
torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    _, plain = _pair()
    x = torch.randn(4, 1, 48, 48, dtype=torch.float64)
    torch.save(plain.state_dict(), tmp_path / "start.pt")
    torch.save(x, tmp_path / "x.pt")
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
    halves = [_gradients(plain, half) for half in x.chunk(2)]
    expected = [(one + other) / 2 for one, other in zip(*halves, strict=True)]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
