"""Mapping descriptors into this process: at an address of our choice, or wherever the kernel likes.

Theory
------
A guest's address space is a reservation that wasmtime made. Its pages may only ever be *replaced*, never given back to the
kernel: a range that is unmapped for a moment can be taken by another thread's allocation, which the guest could then read. So
`map_fixed` and `unmap_fixed` both replace in one system call, and a failed `map_fixed` leaves the range inaccessible, not absent.

A view of memory must outlive the object that handed it out (a NumPy array may still look at it). `Mapping.close` therefore only
drops references; the kernel gets the pages back when the last view is gone. It cannot raise `BufferError`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from shmwasm.addresses import OS_PAGE, NativeAddress, round_up
from shmwasm.errors import ArgumentError, ClosedError, ShmwasmError, UnsupportedError

if TYPE_CHECKING:
    from types import TracebackType

_PROT_NONE: Final = 0
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_MAP_POPULATE: Final = 0x8000
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

# A handle of our own: argument types set here cannot clash with those that another library sets on the shared one.
_libc = ctypes.CDLL(None, use_errno=True)
_mprotect = _libc.mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_fixed(
    address: NativeAddress, length: int, descriptor: int, offset: int = 0, *, writable: bool, prefault: bool = False
) -> None:
    """Replace the pages of [`address`, `address + length`) by a shared mapping of `descriptor` from `offset` on.

    The range must belong to the caller, as nothing else protects what was there.

    Args:
        address: Start of the range, a multiple of the OS page.
        length: Bytes, a multiple of the OS page.
        descriptor: An open regular file or shared memory of at least `offset + length` bytes, rounded up to an OS page.
        offset: Where in the file to start, a multiple of the OS page.
        writable: Whether stores are allowed. A descriptor opened read-only then is an error.
        prefault: Whether to touch all pages now rather than at their first use.

    Raises:
        ArgumentError: The descriptor cannot be mapped like that. The range is now inaccessible or as it was.
        UnsupportedError: The kernel has no room for the mapping. The range is now inaccessible or as it was.
    """
    _check_range(address, length, offset)
    _check_length(descriptor, offset + length)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED | (_MAP_POPULATE if prefault else 0)
    _map_over(address, length, protection, flags, writable=writable, descriptor=descriptor, offset=offset)


def unmap_fixed(address: NativeAddress, length: int) -> None:
    """Make every access to [`address`, `address + length`) fault, keeping the addresses reserved.

    Raises:
        ArgumentError: The range is not made of OS pages.
        UnsupportedError: The kernel refused, which it does only when it is out of memory areas; the range is as it was.
    """
    _check_range(address, length, 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    if _mmap(address, length, _PROT_NONE, flags, -1, 0) == _MAP_FAILED:
        raise _mapping_error(ctypes.get_errno(), -1, length, writable=False)


def clear_fixed(address: NativeAddress, length: int) -> None:
    """Replace the pages of [`address`, `address + length`) by zeros that this process alone sees, and may write to.

    Raises:
        ArgumentError: The range is not made of OS pages.
        UnsupportedError: The kernel has no room for so much memory; the range is as it was, or inaccessible.
    """
    _check_range(address, length, 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    _map_over(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, writable=True)


def reserve_fixed(address: NativeAddress, length: int, descriptor: int, offset: int) -> None:
    """Map `descriptor` over the range with no access allowed yet; a later `mprotect` makes it shared memory in place.

    Raises:
        ArgumentError: The descriptor cannot be mapped like that.
        UnsupportedError: The kernel has no room for the mapping.
    """
    _check_range(address, length, offset)
    _check_length(descriptor, offset + length)
    flags = mmap.MAP_SHARED | _MAP_NORESERVE
    _map_over(address, length, _PROT_NONE, flags, writable=True, descriptor=descriptor, offset=offset)


def open_fixed(address: NativeAddress, length: int) -> None:
    """Allow reading and writing in a range that `unmap_fixed` or `reserve_fixed` made; it holds zeros, or the file's bytes.

    Raises:
        ArgumentError: The range is not made of OS pages.
        UnsupportedError: The kernel has no room for so much memory; the range is as it was.
    """
    _check_range(address, length, 0)
    if _mprotect(address, length, mmap.PROT_READ | mmap.PROT_WRITE):
        raise _mapping_error(ctypes.get_errno(), -1, length, writable=False)


def is_reserved(address: NativeAddress, length: int) -> bool:
    """Return whether all of [`address`, `address + length`) is mapped with no access allowed."""
    reached: int = address
    with Path("/proc/self/maps").open("rb") as areas:  # whose paths are any bytes
        for area in areas:  # by ascending address
            limits, permissions = area.split(maxsplit=2)[:2]
            start, end = (int(limit, 16) for limit in limits.split(b"-"))
            if start <= reached < end and permissions.startswith(b"---"):
                reached = end
    return reached >= address + length


class Mapping:
    """A shared mapping of a descriptor, somewhere in this process. Make one with `map_anywhere`."""

    def __init__(self, address: NativeAddress, size: int, *, writable: bool) -> None:
        # Every view refers to this object, so it dies with the last of them.
        self._memory: ctypes.Array[ctypes.c_char] | None = (ctypes.c_char * size).from_address(address)
        weakref.finalize(self._memory, _munmap, address, size).atexit = False
        self._address = address
        self.size = size
        self.writable = writable

    @property
    def view(self) -> memoryview:
        """The mapped bytes; the memory lives as long as any view of it does.

        Raises:
            ClosedError: The mapping was closed.
        """
        view = memoryview(self._open()).cast("B")
        return view if self.writable else view.toreadonly()

    @property
    def address(self) -> NativeAddress:
        """Where the mapping starts in this process.

        Raises:
            ClosedError: The mapping was closed.
        """
        self._open()
        return self._address

    def close(self) -> None:
        """Drop this object's reference to the memory; views that were handed out stay valid. May be called twice."""
        self._memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> ctypes.Array[ctypes.c_char]:
        if self._memory is None:
            raise ClosedError("the mapping")
        return self._memory


def map_anywhere(descriptor: int, length: int, *, writable: bool, prefault: bool = False, offset: int = 0) -> Mapping:
    """Map `length` bytes of `descriptor` from `offset` on, shared, wherever the kernel likes.

    The descriptor may be closed afterwards. The last bytes may lie beyond the file's end, up to the end of its last OS page: they
    read as zero, and what is written there is not kept.

    Raises:
        ArgumentError: The descriptor cannot be mapped like that.
        UnsupportedError: The kernel has no room for the mapping.
    """
    if length <= 0:
        raise ArgumentError(f"a mapping of {length} bytes was asked for; it needs at least 1")
    if offset % OS_PAGE:
        raise ArgumentError(f"a mapping at offset {offset:#x} was asked for; it must be a multiple of {OS_PAGE} bytes")
    _check_length(descriptor, offset + length)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED | (_MAP_POPULATE if prefault else 0)
    address = _mmap(None, length, protection, flags, descriptor, offset)
    if address == _MAP_FAILED:
        raise _mapping_error(ctypes.get_errno(), descriptor, length, writable=writable)
    return Mapping(NativeAddress(address), length, writable=writable)


def _map_over(
    address: NativeAddress, length: int, protection: int, flags: int, *, writable: bool, descriptor: int = -1, offset: int = 0
) -> None:
    """Map over a range, which is inaccessible or as it was if that fails."""
    if _mmap(address, length, protection, flags | _MAP_FIXED, descriptor, offset) == _MAP_FAILED:
        failure = ctypes.get_errno()
        # The kernel may have dropped the old pages before it failed.
        unmap_fixed(address, length)
        raise _mapping_error(failure, descriptor, length, writable=writable)


def _check_range(address: int, length: int, offset: int) -> None:
    if length <= 0 or (address | length | offset) % OS_PAGE:
        raise ArgumentError(
            f"the range of {length} bytes at {address:#x} (offset {offset:#x}) is not made of whole pages of {OS_PAGE} bytes"
        )


def _check_length(descriptor: int, needed: int) -> None:
    # Pages beyond the file's last one can be mapped, but touching them kills the process (SIGBUS).
    try:
        size = os.fstat(descriptor).st_size
    except OSError as failure:
        raise ArgumentError(f"descriptor {descriptor} cannot be mapped: {failure.strerror}") from None
    if round_up(size, OS_PAGE) < needed:
        raise ArgumentError(f"descriptor {descriptor} holds {size} bytes, fewer than the {needed} bytes to be mapped")


def _mapping_error(failure: int, descriptor: int, length: int, *, writable: bool) -> ShmwasmError:
    reason = os.strerror(failure)
    if failure in {errno.ENOMEM, errno.EAGAIN}:
        return UnsupportedError(
            f"a mapping of {length} bytes",
            f"the kernel has no room for it ({reason}); see vm.max_map_count and the limits on address space and locked memory",
        )
    if failure in {errno.EACCES, errno.EPERM} and writable:
        return ArgumentError(f"descriptor {descriptor} cannot be mapped writable: it is open for reading only, or sealed")
    return ArgumentError(f"descriptor {descriptor} cannot be mapped: {reason}")


class _Buffer(ctypes.Structure):
    """CPython's `Py_buffer`, of the stable ABI."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_Buffer)]
_release_buffer.restype = None


def address_of(memory: mmap.mmap | memoryview) -> NativeAddress:
    """Return where `memory` starts; unlike `ctypes.addressof` it takes read-only memory too.

    The address means something only while the memory is held.

    Raises:
        BufferError: A view whose bytes do not lie side by side.
    """
    buffer = _Buffer()
    _get_buffer(memory, ctypes.byref(buffer), 0)
    try:
        return NativeAddress(buffer.buf)
    finally:
        _release_buffer(ctypes.byref(buffer))
