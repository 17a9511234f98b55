"""What ``torch.compile`` makes of the kernels: it writes each down again, with all that it calls, into a file."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import types
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

FILES = ("bits", "gates", "gates_backward", "maps", "maps_backward", "sample")


def _kernels() -> dict[str, Any]:
    from triton.runtime.jit import JITFunction

    found = {}
    for file in FILES:
        module = importlib.import_module(f"ferattn.kernels.triton.{file}")
        found |= {name: value for name, value in vars(module).items() if isinstance(value, JITFunction)}
    return found


@pytest.mark.parametrize("name", sorted(_kernels()))
def test_a_kernel_can_be_written_down_again(name: str, tmp_path: Path) -> None:
    from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code

    kernel = _kernels()[name]
    source = user_defined_triton_kernel_transitive_closure_source_code(kernel)
    file = tmp_path / "written.py"
    file.write_text(f"import triton\nimport triton.language as tl\n\n@triton.jit\n{kernel.src}\n{source}")
    written = _imported(file)
    for part in vars(written).values():
        if hasattr(part, "fn") and isinstance(part.fn, types.FunctionType):
            missing = [used for used in _globals(part.fn) if not hasattr(written, used)]
            assert not missing, f"{part.fn.__name__} needs {missing}"


def test_what_cannot_be_written_down_is_found(tmp_path: Path) -> None:
    from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code

    file = tmp_path / "endless.py"
    file.write_text(
        "import triton\nimport triton.language as tl\n\nENDLESS = tl.constexpr(float('inf'))\n\n"
        "@triton.jit\ndef fill(out):\n    tl.store(out, ENDLESS)\n"
    )
    source = user_defined_triton_kernel_transitive_closure_source_code(_imported(file).fill)
    with pytest.raises(NameError, match="inf"):
        exec(source, {"triton": triton, "tl": triton.language})


def _imported(file: Path) -> types.ModuleType:
    found = importlib.util.spec_from_file_location(file.stem, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _globals(function: types.FunctionType) -> list[str]:
    import dis

    names = {step.argval for step in dis.Bytecode(function) if step.opname == "LOAD_GLOBAL"}
    return sorted(name for name in names if not hasattr(builtins, name))
