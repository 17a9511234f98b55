"""The kernels compiled for an H100 or H200 without one: registers, spills, and how wide they load and store."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ferattn.kernels.passes import Options, Small

triton = pytest.importorskip("triton", reason="triton is not installed")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}
POINTERS |= {torch.uint8: "*u8"}
WALKS = ("pool_kernel", "spatial_kernel", "apply_kernel", "before_kernel", "spread_kernel", "input_kernel")
WRITES = ("apply_kernel", "before_kernel", "input_kernel")

pytestmark = [
    pytest.mark.skipif(
        not all((TOOLS / name).exists() for name in ("ptxas", "cuobjdump", "nvdisasm")),
        reason="triton came without NVIDIA's ptxas, cuobjdump and nvdisasm",
    ),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]


class Compiled(NamedTuple):
    """What became of a kernel."""

    name: str
    registers: int
    stack: int
    access: Counter[str]


def _compiled(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], where: Path) -> Compiled:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    warps = constants.pop("num_warps")
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    signature: dict[str, str] = {}
    fixed: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif name in constants or value == 1:  # Triton makes a constant of every 1
            signature[name], fixed[(index,)] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (signature[name] == "i32" and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, fixed, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    file = where / "kernel.cubin"
    file.write_bytes(built.asm["cubin"])

    def tool(*command: str) -> str:
        line = [str(TOOLS / command[0]), *command[1:], str(file)]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    used = tool("cuobjdump", "--dump-resource-usage")
    registers, stack = (int(re.findall(rf"{what}:(\d+)", used)[0]) for what in ("REG", "STACK"))
    access = Counter(re.findall(r"\b((?:LDG|STG|LDL|STL)\.[A-Z0-9.]*)", tool("nvdisasm")))
    return Compiled(kernel.fn.__name__, registers, stack, access)


def _tail(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool, only: tuple[str, ...] | None,
    where: Path, monkeypatch: pytest.MonkeyPatch, act: str = "relu", ties: str = "shared", flag: bool = True,
) -> Iterator[Compiled]:  # fmt: skip
    """Every kernel of a training step and of inference, with the tiles that it would be launched with."""
    from ferattn.kernels.triton import launch, launch_backward

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        launch, "launch", lambda kernel, grid, *rest, **constants: calls.append((kernel, rest, constants))
    )
    c = shape[1]
    r = max(1, c // 16)

    def empty(*size: int) -> Tensor:
        return torch.empty(*size, device="meta")

    memory_format = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
    weights: tuple[Any, ...] = (empty(r, c), empty(r), empty(c, r), empty(c), empty(1, 2, 7, 7), empty(1))
    if kind == "eca":
        weights = (None, None, None, None, empty(1, 1, 5), None)
    elif kind == "se":
        weights = (*weights[:4], None, None)
    wanted = launch.tie_rule(ties) if kind == "cbam" else 0
    mean, var, pool, peak, held = launch.statistics(
        x, empty(c), empty(c), empty(c), None, 0.1, batch=True, peak=wanted
    )
    small = Small(empty(c), empty(c), mean, var, pool, peak if wanted else None, *weights)
    options = Options(kind, flag and kind == "cbam", True, 1e-5, act, 1.0, ties)
    left = launch.forward(x, x, small, options, save=True)
    launch_backward.backward(x, x, left.bits if act == "relu" else x, left, held if wanted else None, small, options)
    for limit in (0, launch.ONE_LAUNCH_BYTES):  # inference
        monkeypatch.setattr(launch, "ONE_LAUNCH_BYTES", limit)
        launch.forward(x, x, small._replace(pool=None, peak=None), options._replace(training=False), save=False)
    for kernel, rest, constants in calls:
        if only is None or kernel.fn.__name__ in only:
            yield _compiled(kernel, rest, dict(constants), where)


def _no_spill(found: Compiled) -> None:
    assert found.stack == 0, found
    assert not any(name.startswith(("LDL", "STL")) for name in found.access), found
    assert found.registers <= 224, found


def _wide(found: Compiled) -> None:
    """16 bytes at a time wherever a map is read or written; two blocks of 256 threads on a multiprocessor."""
    assert found.registers <= 128, found
    assert found.access["LDG.E.128"] >= 2, found
    # One value of the map, which the sums are shifted by, is read alone.
    assert found.access["LDG.E.U16"] <= 2 * (found.name == "pool_kernel"), found
    # A ReLU's bits: a byte for every 16 bytes of the map.
    for name, kernel, wide in (("STG.E.U8", "apply_kernel", "STG.E.128"), ("LDG.E.U8", "before_kernel", "STG.E.128")):
        assert found.access[name] <= found.access[wide] * (found.name == kernel), found
    assert not any(name.startswith("STG.E.U") and name != "STG.E.U8" for name in found.access), found
    assert (found.access["STG.E.128"] >= 2) == (found.name in WRITES), found


@pytest.mark.parametrize("last", [True, False])
def test_walks_over_maps_are_wide_and_spill_nothing(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, bytes_ = [], Counter[str]()
    only = WALKS if last else ("apply_kernel", "before_kernel", "input_kernel")
    for found in _tail("cbam", (128, 256, 56, 56), torch.bfloat16, last, only, tmp_path, monkeypatch):
        _no_spill(found)
        _wide(found)
        names.append(found.name)
        bytes_ += Counter({f"{found.name} {name}": n for name, n in found.access.items() if name.endswith("U8")})
    assert set(names) == set(only)
    assert bytes_ == {"apply_kernel STG.E.U8": 2, "before_kernel LDG.E.U8": 2}


def test_a_whole_sample_fits_into_the_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = _tail("cbam", (8, 256, 12, 12), torch.bfloat16, True, ("sample_kernel",), tmp_path, monkeypatch)
    (found,) = kernels
    _no_spill(found)
    assert found.registers <= 128, found
    assert found.access["STG.E.128"] >= 2, found


@pytest.mark.slow
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
@pytest.mark.parametrize("shape", [(128, 256, 56, 56), (32, 2048, 7, 7), (1, 255, 9, 9), (2, 64, 1, 1)])
def test_every_kernel_compiles_and_spills_nothing(
    shape: tuple[int, ...], kind: str, last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, ties = {2048: ("silu", "first"), 256: ("elu", "shared")}.get(shape[1], ("relu", "shared"))
    kernels = _tail(kind, shape, torch.float16, last, None, tmp_path, monkeypatch, act, ties, shape[0] > 1)
    for found in kernels:
        _no_spill(found)
        if found.name in WALKS and shape[2] == 56:
            _wide(found)
