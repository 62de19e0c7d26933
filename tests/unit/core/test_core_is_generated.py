import importlib.util
import re
from pathlib import Path

import pytest

from shmwasm import core
from shmwasm.core import layout

ROOT = Path(__file__).resolve().parents[3]
HEADERS = "".join(Path(core.__file__).with_name(name).read_text() for name in ("core.h", "ring.h"))


def load_tool(name):
    path = ROOT / "tools" / f"{name}.py"
    if not path.is_file():
        pytest.skip("the tools are not part of an installation")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layout_follows_from_the_c_headers():
    generated = load_tool("generate_layout").generate(HEADERS)
    assert Path(layout.__file__).read_text() == generated


def test_every_constant_of_the_c_headers_is_in_the_layout():
    defined = set(re.findall(r"^#define (\w+) \S", HEADERS, re.MULTILINE))
    assert defined == {name for name in vars(layout) if name.isupper()}


def test_core_is_what_its_source_compiles_to(tmp_path):
    pytest.importorskip("ziglang", reason="the compiler is part of the dev extra")
    tool = load_tool("build_core")
    tool.build(tmp_path / "core.wasm")
    assert (tmp_path / "core.wasm").read_bytes() == core.CORE_MODULE.read_bytes()


def test_the_core_uses_no_stack_in_memory():
    """A call that traps does not put that stack's pointer back: after enough interruptions it would have run out."""
    set_the_pointer = b"\x24\x80\x80\x80\x80\x00"  # global.set 0, as the linker writes it
    assert set_the_pointer not in core.CORE_MODULE.read_bytes()
