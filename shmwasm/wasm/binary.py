"""What is known of a module: where each part lies, and what those parts say that matters to whoever rewrites it.

All offsets count the module's bytes from its first. Indices count imports first, as everywhere in WebAssembly.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar, overload

CUSTOM: Final = 0
TYPE: Final = 1
IMPORT: Final = 2
FUNCTION: Final = 3
TABLE: Final = 4
MEMORY: Final = 5
GLOBAL: Final = 6
EXPORT: Final = 7
START: Final = 8
ELEMENT: Final = 9
CODE: Final = 10
DATA: Final = 11
DATA_COUNT: Final = 12
TAG: Final = 13

SECTION_ORDER: Final = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, TAG, GLOBAL, EXPORT, START, ELEMENT, DATA_COUNT, CODE, DATA)
"""In which order sections stand; custom ones may stand anywhere."""

KINDS: Final = ("function", "table", "memory", "global", "tag")
"""What can be imported and exported; the position is the number in the binary format."""


class Span(NamedTuple):
    """A half-open range of bytes."""

    start: int
    end: int


class Section(NamedTuple):
    """A section: its number, where its header starts, where its payload lies, and a custom section's name."""

    number: int
    start: int
    payload: Span
    name: str = ""


class FunctionType(NamedTuple):
    """A function's parameters and results, as the text format names value types ("i32", "funcref", "(ref null 3)")."""

    parameters: tuple[str, ...]
    results: tuple[str, ...]


class Memory(NamedTuple):
    """A memory's type: its limits in pages. `span` is the type's bytes (flags and limits)."""

    minimum: int
    maximum: int | None
    is_64: bool
    shared: bool
    page_size: int
    span: Span


class Table(NamedTuple):
    """A table's type. `span` is the bytes of the reference type and the limits; `initial` those of its initial expression."""

    element: str
    minimum: int
    maximum: int | None
    is_64: bool
    span: Span
    initial: Span | None = None


class Global(NamedTuple):
    """A global's type, and the bytes of its initial expression (with its `end`), where it is not imported."""

    type: str
    mutable: bool
    span: Span
    initial: Span | None = None


class Import(NamedTuple):
    """An import.

    Attributes:
        kind: One of `KINDS`.
        module: The first name.
        name: The second name.
        number: Its index among all of its kind.
        span: Its bytes; where imports are written in groups, those of its own name (and type).
        type: The bytes of its type, without the kind. Imports of one group may share them.
    """

    kind: str
    module: str
    name: str
    number: int
    span: Span
    type: Span


class Export(NamedTuple):
    """An export: one of `KINDS`, and its index (`number`) among all of that kind."""

    name: str
    kind: str
    number: int


class Element(NamedTuple):
    """An element segment.

    Attributes:
        mode: "active", "passive" or "declarative".
        table: Of an active one.
        offset: The expression of an active one, with its `end`.
        expressions: Whether the items are constant expressions, rather than indices of functions.
        length: The number of items.
        items: Their bytes.
        span: All of its bytes.
    """

    mode: str
    table: int
    offset: Span | None
    expressions: bool
    length: int
    items: Span
    span: Span


class Data(NamedTuple):
    """A data segment.

    Attributes:
        mode: "active" or "passive".
        memory: Of an active one.
        offset: The expression of an active one, with its `end`.
        address: Its value, where it is a single constant; unsigned.
        content: The bytes to be copied.
        span: All of its bytes.
    """

    mode: str
    memory: int
    offset: Span | None
    address: int | None
    content: Span
    span: Span


class Body(NamedTuple):
    """A function's body: where its size stands, where its locals start, its first instruction, and its end."""

    start: int
    locals: int
    code: int
    end: int


Row = TypeVar("Row")


class Rows(Sequence[Row]):
    """Rows of which there may be a million: where each stands, by column; what it says is read when it is asked for.

    Args:
        read: Reads a row, given its values in the columns.
        columns: The columns, to be filled.
    """

    def __init__(self, read: Callable[..., Row], *columns: MutableSequence[int]) -> None:
        self.columns = columns
        self._read = read

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self._read(*(column[index] for column in self.columns))

    def __iter__(self) -> Iterator[Row]:
        return map(self._read, *self.columns)


@dataclass(slots=True)
class Binary:
    """A module that `decoding.decode` took apart.

    The rows of `globals`, `exports`, `data` and `bodies` are read from the content: that raises `ModuleError` where the module is
    malformed in a way that only those who read the row need to know.

    Attributes:
        content: The module.
        globals: All globals. Columns: where the type stands, where the initial expression ends, 1 if it is mutable.
        exports: In their order. Columns: where the name stands, the kind's position in `KINDS`, the index.
        data: The data segments. Column: where each starts.
        bodies: Those of the functions that are not imported. Columns: where each starts, and ends.
        sections: In their order.
        types: One entry for each type index; None for a type that is no function's.
        imports: In their order.
        functions: The type index of each function.
        tables: All tables.
        memories: All memories.
        tags: The type index of each tag.
        start: The start function's index.
        elements: The element segments.
        data_count: What the section of that name says, if there is one.
        syntax: Proposals that showed in the sections themselves: types, limits, segments. See `features`.
    """

    content: bytes
    globals: Rows[Global]
    exports: Rows[Export]
    data: Rows[Data]
    bodies: Rows[Body]
    sections: list[Section] = field(default_factory=list)
    types: list[FunctionType | None] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    functions: array[int] = field(default_factory=lambda: array("L"))
    tables: list[Table] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    tags: array[int] = field(default_factory=lambda: array("L"))
    start: int | None = None
    elements: list[Element] = field(default_factory=list)
    data_count: int | None = None
    syntax: set[str] = field(default_factory=set)

    def section(self, number: int) -> Section | None:
        """Return the section of that number, which is not `CUSTOM`."""
        return next((section for section in self.sections if section.number == number), None)

    @property
    def names(self) -> Section | None:
        """The section that names functions, locals and more; None if there is none."""
        return next((section for section in self.sections if section.number == CUSTOM and section.name == "name"), None)

    def imported(self, kind: str) -> int:
        """Return how many of the imports are of a kind (one of `KINDS`)."""
        return sum(entry.kind == kind for entry in self.imports)

    def exports_of(self, kind: str) -> list[Export]:
        """Return the exports of a kind (one of `KINDS`)."""
        _, kinds, _ = self.exports.columns
        wanted = KINDS.index(kind)
        return [self.exports[place] for place, each in enumerate(kinds) if each == wanted]

    def function_type(self, function: int) -> FunctionType | None:
        """Return the type of the function of that index; None if its type index names no function's type."""
        index = self.functions[function]
        return self.types[index] if index < len(self.types) else None
