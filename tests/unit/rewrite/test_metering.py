"""What metering makes of modules: they do the same, and pay for it."""

from __future__ import annotations

import itertools

import pytest
import wasmtime

from shmwasm.engine.nests import new_store
from shmwasm.rewrite import meter, rewrite, seam
from shmwasm.wasm.decoding import decode

CHOOSING = """(module (func (export "run") (param i32) (result i32)
  (block $two (block $one (block $zero (br_table $zero $one $two (local.get 0)))
    (return (i32.const 10)) nop unreachable)
    (return (i32.const 11)))
  (i32.const 12)))"""

CATCHING = """(module (tag $error (param i32)) (func $throw (param i32) (throw $error (local.get 0)))
  (func (export "run") (param i32) (result i32)
    (block $caught (result i32)
      (try_table (catch $error $caught) (if (local.get 0) (then (call $throw (local.get 0)))) )
      (i32.const 5))))"""

DEAD = """(module (func (export "run") (param i32) (result i32)
  (block (br 0) (loop (br_if 0 (i32.const 1)) (if (i32.const 1) (then) (else nop))) (drop (i32.add)))
  (loop (result i32) (local.get 0) (return) (i32.const 3))))"""

FILLING = """(module (memory (export "memory") 1) (func (export "run") (param i32) (result i32)
  (memory.fill (i32.const 0) (local.get 0) (local.get 0)) (i32.load8_u (i32.const 0))))"""

TAIL = """(module (func $down (export "run") (param i32) (result i32)
  (if (i32.eqz (local.get 0)) (then (return (i32.const 1))))
  (return_call $down (i32.sub (local.get 0) (i32.const 1)))))"""


class _Metered:
    def __init__(self, engine: wasmtime.Engine, text: str) -> None:
        content, report = rewrite(bytes(wasmtime.wat2wasm(text)))
        self.store = new_store(engine)
        module = wasmtime.Module(engine, meter(content, report.functions).content)
        linker = wasmtime.Linker(engine)
        self._exports = linker.instantiate(self.store, module).exports(self.store)

    @property
    def fuel(self) -> int:
        return self._exports[seam.FUEL].value(self.store)

    def run(self, number: int, fuel: int = seam.FUEL_WITHOUT_END) -> tuple[object, int]:
        """Return what `run` returns, None if it trapped, and what it used."""
        self._exports[seam.FUEL].set_value(self.store, wasmtime.Val.i64(fuel))
        try:
            result = self._exports["run"](self.store, number)
        except wasmtime.Trap:
            result = None
        return result, fuel - self.fuel


@pytest.fixture
def metered(engine):
    made = []

    def new(text: str) -> _Metered:
        made.append(_Metered(engine, text))
        return made[-1]

    yield new
    for one in made:
        one.store.close()


def test_a_module_that_was_never_given_fuel_is_not_limited(metered):
    assert metered(CHOOSING).fuel == seam.FUEL_WITHOUT_END


@pytest.mark.parametrize(
    ("text", "results"),
    [
        (CHOOSING, {0: 10, 1: 11, 2: 12, 7: 12}),
        (CATCHING, {0: 5, 3: 3}),
        (DEAD, {4: 4}),
        (FILLING, {9: 9}),
        (TAIL, {0: 1, 50_000: 1}),
    ],
)
def test_metered_functions_return_the_same_and_stop_without_what_they_need(metered, text, results):
    guest = metered(text)
    for number, expected in results.items():
        result, used = guest.run(number)
        assert result == expected
        assert used > 0
        assert guest.run(number, used) == (expected, used)
        assert guest.run(number) == (expected, used)


def test_each_turn_is_paid_for(metered):
    guest = metered(TAIL)
    costs = [guest.run(number)[1] for number in range(4)]
    assert {after - before for before, after in itertools.pairwise(costs)} == {costs[1] - costs[0]}
    assert guest.run(3, costs[1])[0] is None


def test_helpers_of_the_rewriter_are_free(metered):
    guest = metered(FILLING)
    assert guest.run(9)[1] == guest.run(40_000)[1]


def test_functions_beyond_the_modules_own_are_left_alone():
    content = bytes(wasmtime.wat2wasm("(module (func nop) (func nop))"))
    metered = decode(meter(content, 1).content)
    sizes = [body.end - body.code for body in metered.bodies]
    assert sizes[0] > sizes[1] == 2
