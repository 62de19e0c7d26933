"""The heap memory as generated code sees it: its private part, the window, and the checks before anything is touched.

Theory
------
Generated code computes with 64 bits, for 32-bit memories too, so that the end of a range never wraps. In a memory64, an address
or a length of 2^48 and more is refused first (`TOO_LARGE`), for the same reason: nothing that exists reaches so far.

A range of addresses may lie in private memory, [0, size), or in the chain, [start, end). Where the memory has grown right up to
the chain, they are one. While nothing is attached, start is `seam.NOTHING`: no address is there.

Native instructions check private addresses themselves in a 32-bit memory, whose size the engine knows. The engine believes that a
memory64 has its whole declared range, so there every range is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Final

from shmwasm.addresses import WASM_PAGE
from shmwasm.rewrite import seam
from shmwasm.rewrite.additions import Additions
from shmwasm.rewrite.assembler import access, body, get, i32, i64, if_, keep, loop, op, put
from shmwasm.rewrite.template import Template

TOO_LARGE: Final = -(1 << 48)
"""The bits that no address and no length of a memory64 has."""

PAGE_BITS: Final = WASM_PAGE.bit_length() - 1
"""Pages are shifted by so many bits to become bytes."""

_COUNT: Final = 0
_ENTRY_START: Final = seam.TABLE_ENTRIES
_ENTRY_END: Final = _ENTRY_START + 8
_ENTRY_WRITABLE: Final = _ENTRY_START + 16


@dataclass(frozen=True, slots=True)
class Range:
    """A range of addresses in generated code: the locals (i64) that hold its first address and its length."""

    address: int
    length: int

    @property
    def end(self) -> bytes:
        """The code of one past its last address."""
        return op("i64.add", get(self.address), get(self.length))


@dataclass(frozen=True, slots=True)
class HeapMemory:
    """The heap memory of a module that is being rewritten.

    Attributes:
        index: Its index.
        is_64: Whether its addresses have 64 bits.
        minimum: The pages that it starts with.
        additions: Where to append what the generated code needs.
        templates: What `template` has made.
    """

    index: int
    is_64: bool
    minimum: int
    additions: Additions
    templates: dict[Hashable, Template] = field(default_factory=dict, compare=False)

    @property
    def address_type(self) -> str:
        """The type of its addresses."""
        return "i64" if self.is_64 else "i32"

    @property
    def alias(self) -> int:
        """The index of the memory that maps the chain a second time."""
        return self.additions.memory(seam.ALIAS)

    @property
    def start(self) -> bytes:
        """The code of the chain's first address."""
        return op("global.get", at=[self.additions.global_(seam.START, "i64", i64(seam.NOTHING))])

    @property
    def end(self) -> bytes:
        """The code of one past the chain's last address."""
        return op("global.get", at=[self.additions.global_(seam.END, "i64", i64(0))])

    @property
    def mixed(self) -> bytes:
        """The code of whether the chain's table must be asked."""
        return op("global.get", at=[self.additions.global_(seam.MIXED, "i32", i32(0))])

    @property
    def pages(self) -> bytes:
        """The code of the size of a memory64, in pages."""
        return op("global.get", at=[self.additions.global_(seam.PAGES, "i64", i64(self.minimum))])

    @property
    def size(self) -> bytes:
        """The code of its size in bytes."""
        pages = self.pages if self.is_64 else op("i64.extend_i32_u", op("memory.size", at=[self.index]))
        return op("i64.shl", pages, i64(PAGE_BITS))

    @property
    def private_end(self) -> bytes:
        """The code of where a range must end at the latest before the native instruction can be left to check the rest."""
        return self.size if self.is_64 else self.start

    def template(self, key: Hashable, count: int, code: Callable[[Sequence[int]], bytes]) -> Template:
        """Return the template of that key, made at its first use."""
        found = self.templates.get(key)
        if found is None:
            found = self.templates[key] = Template(count, code)
        return found

    def require_seam(self) -> None:
        """Append all that the engine needs to tell where the chain is."""
        _ = (self.start, self.end, self.mixed, self.alias)

    def address(self, value: bytes) -> bytes:
        """Return the code of 64 bits as an address of this memory."""
        return value if self.is_64 else op("i32.wrap_i64", value)

    def alias_address(self, value: bytes) -> bytes:
        """Return the code of where the alias memory has the chain's address `value`."""
        return op("i32.add", op("i32.wrap_i64", op("i64.sub", value, self.start)), i32(seam.ALIAS_CHAIN))

    def in_chain(self, part: Range) -> bytes:
        """Return the code of whether a range lies in the chain."""
        return op("i32.and", op("i64.ge_u", get(part.address), self.start), op("i64.le_u", part.end, self.end))

    def reachable(self, part: Range) -> bytes:
        """Return the code of whether a range lies in private memory, the chain, or both where they meet."""
        beyond = op("i32.or", op("i64.ge_u", get(part.address), self.start), op("i64.eq", self.size, self.start))
        in_chain = op("i32.and", beyond, op("i64.le_u", part.end, self.end))
        return op("i32.or", op("i64.le_u", part.end, self.size), in_chain)

    def trap_out_of_bounds(self) -> bytes:
        """Return code that traps like an access beyond the end."""
        beyond = access("i32.load8_u", i32(-1), memory=self.alias, offset=(1 << 32) - 1)
        return op("unreachable", op("drop", beyond))

    def trap_if(self, condition: bytes) -> bytes:
        """Return code that traps like an access beyond the end if the condition holds."""
        return if_(condition, self.trap_out_of_bounds())

    def trap_if_not_private(self, part: Range) -> bytes:
        """Return the check that a native instruction needs before it works on a range below the chain."""
        return self.trap_if(op("i64.gt_u", part.end, self.size)) if self.is_64 else b""

    def fits(self, *values: bytes) -> bytes:
        """Return the code of whether none of these values is so large that sums of them could wrap."""
        return op("i64.eqz", op("i64.and", reduce(partial(op, "i64.or"), values), i64(TOO_LARGE)))

    def trap_unless_fits(self, *values: int) -> bytes:
        """Return the check that keeps sums of these locals from wrapping; 32-bit values cannot."""
        return self.trap_if(op("i32.eqz", self.fits(*map(get, values))))

    def trap_if_refused(self, part: Range, *, write: bool) -> bytes:
        """Return the check that no heap in a range refuses the access, if some heap may. The range is not checked otherwise."""
        function = self.additions.function("allowed", ["i64", "i64", "i32"], [], self._allowed)
        return if_(self.mixed, op("call", get(part.address), part.end, i32(write), at=[function]))

    def _allowed(self, _index: int) -> bytes:
        """Return the function that goes over the chain's table: (first, end, write) -> (), or a trap."""
        first, end, write, entry, left = range(5)

        def field(name: str, offset: int) -> bytes:
            return access(name, get(entry), memory=self.alias, offset=offset)

        refused = op("i32.and", get(write), op("i32.eqz", field("i32.load", _ENTRY_WRITABLE)))
        entry_found = self.trap_if(op("i32.or", op("i64.gt_u", field("i64.load", _ENTRY_START), get(first)), refused)) + if_(
            op("i64.ge_u", keep(first, field("i64.load", _ENTRY_END)), get(end)), op("return")
        )
        return body(
            ["i32", "i32"],
            # What lies below the chain is none of the table's business.
            if_(op("i64.lt_u", get(first), self.start), put(first, self.start)),
            if_(op("i64.ge_u", get(first), get(end)), op("return")),
            put(left, access("i32.load", i32(0), memory=self.alias, offset=_COUNT)),
            loop(
                self.trap_if(op("i32.eqz", get(left)))
                + if_(op("i64.gt_u", field("i64.load", _ENTRY_END), get(first)), entry_found)
                + put(entry, op("i32.add", get(entry), i32(seam.TABLE_ENTRY)))
                + put(left, op("i32.sub", get(left), i32(1)))
                + op("br", at=[0])
            ),
        )
