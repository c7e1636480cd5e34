"""When kernels are used: private names of torch, the table of what they take, and what observes modules they stand for."""

import ast
import re
from collections.abc import Callable

import pytest
import torch
from conftest import CPU_MODES, ROOT, make_factory
from torch import nn

from activations import torch_private
from activations.gct import GCT
from activations.kernels import library, signatures

GLOBAL = nn.modules.module


def test_the_installed_torch_has_every_private_name() -> None:
    assert torch_private.MISSING == []


def test_a_name_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "MISSING", [])
    assert torch_private._find("torch._C._gone") is None
    assert torch_private.MISSING == ["torch._C._gone"]
    with pytest.raises(ImportError, match=r"torch .* has no torch\._C\.gone\.too"):
        torch_private._find("torch._C.gone.too", required=True)


def test_without_a_private_name_kernels_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "MISSING", ["torch._C._gone"])
    found, reason = library._load()
    assert found is None
    assert reason == f"torch {torch.__version__} has no torch._C._gone"
    assert not library.readable(torch.zeros(()))  # so that a unit takes the way that never looks into tensors


def test_private_names_are_in_one_file() -> None:
    """Attributes of torch's modules with a leading underscore, and imports from such modules."""
    folders = ("actbench", "activations", "results", "runners", "scripts", "tasks")
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
            elif isinstance(node, ast.ImportFrom) and node.module:
                name = f"{node.module}.{node.names[0].name}"
            else:
                continue
            parts = name.split(".")
            if parts[0] in ("torch", "nn") and any(re.match("_[^_]", part) for part in parts[1:]):
                found.add((path.name, name))
    assert {name for path, name in found if path != "torch_private.py"} <= {
        "torch._assert"
    }  # documented for torch.fx


def test_what_keeps_the_compiler_from_being_imported_is_there() -> None:
    """Two seconds of every start; see ``runners.optim`` and ``runners.cost``."""
    wrapped = ("add_param_group", "state_dict", "load_state_dict", "zero_grad", "step")
    for cls in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        assert [name for name in wrapped if not hasattr(getattr(cls, name), "__wrapped__")] == []
    assert hasattr(torch_private.TorchDispatchMode, "_should_skip_dynamo")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda table: table.replace("prelu_f32_forward iiiipppi", "prelu_f32_forward iiiippp"),
            "prelu_f32_forward is",
        ),
        (lambda table: table.replace("MAX_PARAMS 40", "MAX_PARAMS 50"), "MAX_PARAMS is 50 instead of 40"),
        (lambda table: table + "new_f32_forward pp\n", "new_f32_forward is pp instead of missing"),
        (
            lambda table: "",
            f"MAX_PARAMS is missing instead of 40 and {len(signatures.TABLE) - 1} more",
        ),  # compiled before there was a table
    ],
)
def test_a_compiled_file_with_another_table_is_not_used(
    change: Callable[[str], str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "".join(f"{name} {letters}\n" for name, letters in signatures.TABLE.items())
    assert signatures.differences(table) == []
    variant = library._variant()
    path = library.FOLDER / f"fused_{variant}.so"
    if not path.exists():
        pytest.skip("no kernels were built")
    monkeypatch.setattr(library, "_table_of", lambda loaded: change(table))
    with pytest.warns(UserWarning, match=rf"{path.name} does not fit this code: .*build\.py"):
        found, about = library._load()
    assert found is None
    assert said in about
    monkeypatch.setattr(library, "_library", found)
    monkeypatch.setattr(library, "_about", about)
    assert library.described() == f"reference ({about})"
    x = torch.randn(3, 4)
    torch.testing.assert_close(make_factory("prelu")(4)(x), torch.where(x >= 0, x, 0.25 * x))


@pytest.mark.parametrize("mode", CPU_MODES)
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
        GLOBAL.register_module_forward_hook,
        GLOBAL.register_module_forward_pre_hook,
        GLOBAL.register_module_full_backward_hook,
        GLOBAL.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_hooks_on_the_base_of_gct_are_called(
    register: Callable, position: str, inner: bool, mode: str
) -> None:
    """On the adapter and on torch's module in it, with the kernels and without."""
    unit = make_factory("gct", f"activation.position={position}")(4)
    assert isinstance(unit, GCT)
    observed = unit.base.function if inner else unit.base
    called = []
    hooked = () if register.__name__.startswith("register_module") else (observed,)
    handle = register(*hooked, lambda module, *_: called.append(module))
    try:
        with library.using(mode):
            unit(torch.randn(3, 4, 5, requires_grad=True)).sum().backward()
    finally:
        handle.remove()
    assert called.count(observed) == 1


def test_a_patched_forward_of_the_base_is_called() -> None:
    unit = make_factory("gct")(4)
    x = torch.randn(3, 4, 5)
    unit.base.function.forward = torch.Tensor.neg
    torch.testing.assert_close(unit(x), -x)  # the gate is 1 at the start
