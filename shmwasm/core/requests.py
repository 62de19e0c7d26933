"""Requests: the core memory in which a call's arguments and results pass between the client's host and its core.

Theory
------
A call takes three steps: pack the arguments into a request, enter the core once, unpack the results. What these steps cost is
Python's time, and most of all that of making tuples. So a request lies such that whatever differs from call to call is packed in
one go, the core's own argument included, and the answer comes with the results; and the function that does it is made, from text,
for its number of parameters and results.

`ring.h` has the layout of a request.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from shmwasm.core import layout
from shmwasm.core.calls import invoke, pointer
from shmwasm.posix.signals import raises_again

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmwasm.core.allocator import Core
    from shmwasm.core.calls import CoreFunction
    from shmwasm.core.dispatching import Signature

CELL: Final = 8
"""Bytes of a cell."""

UNSIGNED_CELLS: Final = {"i32": "I4x", "i64": "Q", "f32": "f4x", "f64": "d"}
"""A cell's `struct` format for each type."""

SIGNED_CELLS: Final = {"i32": "i4x", "i64": "q", "f32": "f4x", "f64": "d"}
"""The same, integers signed."""

_REFUSALS: Final = (struct.error, TypeError, OverflowError)
"""What `struct` raises of an argument that it cannot pack."""

_HOST: Final = "<I12x"
"""A core function's array of arguments, for one that takes a request, and then its answer."""

_CELLS: Final = layout.REQUEST_CELLS - layout.REQUEST_HOST
_NO_SEQUENCE: Final = 0xFFFF_FFFF

# A request's fields, in words from its first.
_SEQUENCE, _EXPORT, _FLAGS, _CELLS_IN, _CELLS_OUT, _STATUS, _COUNT, _PROGRESS, _ARGUMENTS, _RESULTS, _WHEN, _, _RING = range(13)


class NoKind:
    """The type of what takes and returns nothing in a request's own cells."""

    parameters: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


def arguments_format(kind: Signature, cells: dict[str, str] = UNSIGNED_CELLS) -> str:
    """Return the `struct` format of the cells of a call's arguments."""
    return "".join(cells[value] for value in kind.parameters)


def results_format(kind: Signature) -> str:
    """Return the `struct` format of the cells of its results: integers come out signed."""
    return "".join(SIGNED_CELLS[value] for value in kind.results)


class EndedCall(NamedTuple):
    """An asynchronous call that has ended."""

    sequence: int
    status: int
    """How it ended: `layout.CALL_RETURNED` and so on."""
    progress: int
    """Of a batch: how many of its calls have returned."""
    cells: bytes
    """The results, for `results_format`; meaningless unless it returned."""
    when: int
    """What the client's clock was at the submission."""


class Request:
    """Core memory for one call's arguments and results. Made by `ClientRing.request`.

    Attributes:
        memory: From the host's cell on; the call's cells follow it.
        place: Where the request lies in the core's memory.
        arguments: What a core function that takes this request is called with.
        capacity: How many cells there is room for.
        pool: Where it is while nobody uses it.
    """

    __slots__ = ("_pack", "_pack_signed", "_unpack", "_words", "arguments", "capacity", "memory", "place", "pool")

    def __init__(self, core: Core, place: int, capacity: int, kind: Signature, pool: list[Request]) -> None:
        self.place = place
        self.pool = pool
        self.capacity = capacity
        self.memory = core.view(place + layout.REQUEST_HOST, _CELLS + CELL * capacity)
        self.arguments = pointer(core.native_address(place + layout.REQUEST_HOST))
        self._pack = struct.Struct(_HOST + arguments_format(kind)).pack_into
        self._pack_signed = struct.Struct(_HOST + arguments_format(kind, SIGNED_CELLS)).pack_into
        self._unpack = struct.Struct(_HOST + results_format(kind)).unpack_from
        self._words = core.view(place, layout.REQUEST_HOST).cast("I")
        self._words[:] = memoryview(bytes(layout.REQUEST_HOST)).cast("I")
        self._words[_SEQUENCE] = _NO_SEQUENCE
        self._words[_CELLS_IN], self._words[_CELLS_OUT] = len(kind.parameters), len(kind.results)

    @property
    def sequence(self) -> int:
        """The call's number, once it was submitted."""
        return self._words[_SEQUENCE]

    @property
    def status(self) -> int:
        """How the call ended, once it has: `layout.CALL_RETURNED` and so on."""
        return self._words[_STATUS]

    @property
    def progress(self) -> int:
        """How many calls of a batch returned, once it has ended."""
        return self._words[_PROGRESS]

    def pack(self, arguments: Sequence[object]) -> bool:
        """Take the arguments of a single call; return False unless they are numbers that fit, all unsigned or all signed."""
        try:
            return self._try_to_pack(arguments)
        except Exception:
            if raises_again(lambda: self._try_to_pack(arguments)):
                return False
            raise

    def results(self) -> tuple[int | float, ...]:
        """Return the results of a single call that returned, integers signed."""
        results: tuple[int | float, ...] = self._unpack(self.memory)[1:]
        return results

    def cells(self) -> bytes:
        """Return the results as they are, for `results_format`."""
        return bytes(self.memory[_CELLS : _CELLS + CELL * self._words[_CELLS_OUT]])

    def _try_to_pack(self, arguments: Sequence[object]) -> bool:
        """Pack what is not refused; raises whatever an argument's own code does."""
        for pack in (self._pack, self._pack_signed):
            try:
                pack(self.memory, 0, self.place, *arguments)
            except _REFUSALS:
                continue
            return True
        return False

    def forget(self) -> None:
        """Forget the call that it was last submitted for."""
        self._words[_SEQUENCE] = _NO_SEQUENCE

    def name(self, number: int) -> None:
        """Say which function is called."""
        self._words[_EXPORT] = number

    def belong(self, ring: int) -> None:
        """Say where the ring is; 0 for none any more."""
        self._words[_RING] = ring

    def prepare(self, flags: int, when: int = 0) -> None:
        """Say how it is to be submitted."""
        self._words[_FLAGS] = flags
        self._words[_WHEN], self._words[_WHEN + 1] = when & 0xFFFF_FFFF, when >> 32

    def prepare_batch(self, count: int, arguments: int, results: int) -> None:
        """Say how many calls it is for, at least 1, and where in the ring their columns start."""
        self._words[_COUNT], self._words[_ARGUMENTS], self._words[_RESULTS] = count, arguments, results

    def ended(self) -> EndedCall:
        """Return what was collected into it."""
        words = self._words
        when = words[_WHEN] | words[_WHEN + 1] << 32
        return EndedCall(words[_SEQUENCE], words[_STATUS], words[_PROGRESS], self.cells(), when)


class Steps(NamedTuple):
    """What a hot function is made of, beside the core."""

    new: Callable[[], Request | None]
    """Gives another request, or None if there is no ring any more."""
    convert: Callable[[tuple[object, ...]], Sequence[int | float]]
    """Makes numbers of the arguments, or raises."""
    sleep: Callable[[], object]
    """Wakes the worker, which sleeps, and sleeps at the other bell; called where the core has prepared that."""
    finish: Callable[[Request | None, int], object]
    """Returns what the call is to return where the core answered something else than RING_DONE."""
    withdraw: Callable[[Request], None]
    """Gives up the call, if it was submitted and has not ended."""


def hot_function(
    core_function: CoreFunction, look: CoreFunction, kind: Signature, pool: list[Request], steps: Steps
) -> Callable[..., object]:
    """Return the function that takes a call's arguments, enters the core with a request of `pool`, and returns its results."""

    def pack_otherwise(request: Request, given: tuple[object, ...], failure: Exception) -> None:
        arguments = tuple(argument for argument in given if argument is not _MISSING)
        if not request.pack(arguments):
            packed = request.pack(steps.convert(arguments))
            assert packed, "numbers were converted wrongly"
        elif not isinstance(failure, _REFUSALS):
            raise failure  # a signal's handler did: what an argument's own code raises, it would have raised again

    made: Callable[..., object] = _maker(len(kind.parameters), len(kind.results))(
        take=pool.pop,
        give=pool.append,
        enter=invoke,
        context=core_function.context,
        function=core_function.function,
        look=look.function,
        arity=core_function.arity,
        trap=core_function.trap,
        pack=struct.Struct(_HOST + arguments_format(kind)).pack_into,
        place=struct.Struct(_HOST).pack_into,
        unpack=struct.Struct(_HOST + results_format(kind)).unpack_from,
        pack_otherwise=pack_otherwise,
        **steps._asdict(),
    )
    return made


class _Missing:
    """The default of every parameter: what cannot be packed, so that all wrong calls go one way."""

    def __index__(self) -> NoReturn:
        raise TypeError("an argument is missing")


_MISSING: Final = _Missing()

_MOST_INTERRUPTS: Final = 5
"""How many signals may come together whose handlers raise: one where a call is left, the next where it is to be withdrawn."""

_WITHDRAW: Final = """
try:
    withdraw(request)
except BaseException:
    {again}
    raise
"""

_ENDING: Final = """
except BaseException:
    # Also a signal's handler may raise, after the call was submitted.
    try:
        {withdraw}
    finally:
        give(request)
    raise
give(request)
return result
"""

_TEMPLATE: Final = """
def make({given}):
    def call({parameters}*more):
        try:
            request = take()
        except IndexError:
            request = new()
            if request is None:
                return finish(None, {lost})
        try:
            try:
                if more:
                    raise TypeError
                pack(request.memory, 0, request.place, {arguments})
            except Exception as failure:
                pack_otherwise(request, ({arguments}*more,), failure)
            enter(context, function, request.arguments, arity, trap)
            answer, {results} = unpack(request.memory)
            if answer:
                if answer == {asleep}:
                    sleep()
                    place(request.memory, 0, request.place)
                    enter(context, look, request.arguments, arity, trap)
                    answer, {results} = unpack(request.memory)
                result = finish(request, answer) if answer else {result}
            else:
                result = {result}
        {ending}
    return call
"""
_WAITED_FOR: Final = """
def waited_for(work, request, withdraw, give):
    try:
        result = work()
    {ending}
"""

_GIVEN: Final = (
    f"take, give, enter, context, function, look, arity, trap, pack, place, unpack, pack_otherwise, {', '.join(Steps._fields)}"
)


def _withdrawing(interrupts: int) -> str:
    """Return the text that withdraws a call for certain, whoever interrupts that so often."""
    return _WITHDRAW.strip().format(again=_within(_withdrawing(interrupts - 1), 4) if interrupts else "pass")


def _ending(depth: int) -> str:
    """Return the text that ends whatever has a request, and that begins so many characters deep."""
    return _within(_ENDING.strip().format(withdraw=_within(_withdrawing(_MOST_INTERRUPTS), 8)), depth)


def _within(text: str, depth: int) -> str:
    """Return some lines as they follow others that begin so many characters deep."""
    return text.replace("\n", "\n" + " " * depth)


def _made(text: str, name: str) -> Any:
    """Return what a text of ours defines by that name."""
    names: dict[str, Any] = {"missing": _MISSING}
    exec(text, names)  # noqa: S102  made of nothing but numbers
    return names[name]


_waited_for: Final = _made(_WAITED_FOR.format(ending=_ending(4)), "waited_for")


def waited_for(
    work: Callable[[], object], request: Request, withdraw: Callable[[Request], None], give: Callable[[Request], None]
) -> object:
    """Return what `work` returns, which submits a call and waits for it; whatever ends that, withdraw the call.

    Args:
        work: What to do.
        request: The call's, which is given back in the end.
        withdraw: As in `Steps`.
        give: Takes the request back.
    """
    return _waited_for(work, request, withdraw, give)


@functools.cache
def _maker(parameters: int, results: int) -> Any:
    """Compile what makes hot functions of so many parameters and results."""
    values = [f"r{index}" for index in range(results)]
    text = _TEMPLATE.format(
        given=_GIVEN,
        lost=layout.RING_LOST,
        asleep=layout.RING_PENDING | layout.RING_DOORBELL | layout.RING_AT_BELL,
        parameters="".join(f"a{index}=missing, " for index in range(parameters)),
        arguments="".join(f"a{index}, " for index in range(parameters)),
        results=", ".join(values),
        result=values[0] if results == 1 else f"[{', '.join(values)}]" if values else None,
        ending=_ending(8),
    )
    return _made(text, "make")
