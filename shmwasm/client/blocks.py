"""A block of a shared heap, as the host holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from shmwasm.addresses import AppAddress, HeapOffset
from shmwasm.errors import ArgumentError, ClosedError, UnsupportedError, shown

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from shmwasm.client.heaps import SharedHeap
    from shmwasm.client.instances import Instance


class Block:
    """Bytes of a shared heap: `size` bytes from heap offset `offset` on.

    A block passes as its app address wherever an integer is expected (`__index__`); a guest is given it as the address at which
    this guest sees it. It can be pickled: whoever unpickles it, in whichever process of the same user, attaches to the same
    bytes. The pickle does not keep the heap: some process must hold it open until then.

    As a context manager it is freed at the end. It is not freed when it is collected: a guest may hold its address.
    """

    __slots__ = ("freed", "heap", "offset", "size")

    def __init__(self, heap: SharedHeap, offset: HeapOffset, size: int) -> None:
        self.heap = heap
        """The heap that the block is in."""
        self.offset = offset
        """Where it starts, in bytes from the heap's first byte."""
        self.size = size
        """Its length in bytes, as it was asked for."""
        self.freed = False
        """Whether the block was freed through this object; the heap says so."""

    @property
    def address(self) -> AppAddress:
        """Where a 32-bit guest attached to the heap's chain sees the block. Changes when the heap is chained or unchained."""
        return AppAddress(self.heap.start + self.offset)

    def address_in(self, instance: Instance) -> AppAddress:
        """Return where that instance sees the block; it differs from `address` where the instance's memory is a 64-bit one.

        Raises:
            ArgumentError: The block was freed, its heap is not attached to the instance, or `instance` is none.
            ClosedError: The instance was closed.
        """
        from shmwasm.client.instances import Instance  # noqa: PLC0415  instances know heaps, which make blocks

        if not isinstance(instance, Instance):
            raise ArgumentError(f"{shown(instance)} is not an instance")
        return instance.address_of(self)

    @property
    def view(self) -> memoryview:
        """The block's bytes, without a copy; writable unless the heap is read-only.

        Raises:
            ClosedError: The block was freed, or its heap closed.
        """
        if self.freed:
            raise ClosedError(repr(self), "was freed")
        return self.heap.view[self.offset : self.offset + self.size]

    def ndarray(self, dtype: Any, shape: int | tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
        """Return a numpy array over the block's bytes, without a copy.

        Args:
            dtype: Whatever numpy takes for an element type.
            shape: The array's shape; by default one dimension with as many elements as fit.

        Raises:
            UnsupportedError: numpy is not installed.
            ArgumentError: Elements of that type have no bytes of their own: they are empty, or Python objects.
            TypeError: numpy knows no such type (numpy's own error).
            ValueError: The block is too small for that shape (numpy's own error).
        """
        try:
            import numpy as np  # noqa: PLC0415  an optional dependency
        except ImportError:
            raise UnsupportedError("Block.ndarray", "numpy is not installed; install 'shmwasm[numpy]'") from None
        kind = np.dtype(dtype)
        if not kind.itemsize or kind.hasobject:
            raise ArgumentError(f"{kind!r} is no type of elements that have bytes of their own")
        if shape is None:
            shape = self.size // kind.itemsize
        return np.ndarray(shape, kind, buffer=self.view)

    def free(self) -> None:
        """Give the block back; a second time does nothing.

        Raises:
            InvalidFreeError: The block is not live: somebody else freed it already.
        """
        if not self.freed:
            self.heap.free(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.free()

    def __index__(self) -> int:
        return self.heap.start + self.offset

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        state = "freed block" if self.freed else "block"
        return f"<{state} of {self.size} bytes at offset {self.offset:#x} of shared heap {self.heap.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from shmwasm.client.runtime import attach_block  # noqa: PLC0415  the runtime makes heaps, which make blocks

        if self.freed:
            raise ClosedError(repr(self), "was freed")
        return attach_block, (*self.heap.capability(), self.offset, self.size)
