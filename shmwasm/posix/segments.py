"""Segments: the files behind shared heaps, made by us or brought by the user.

Theory
------
A segment of ours never has a name in /dev/shm, so not even SIGKILL of everything can leave one behind. Its descriptor is the only
way to it, and it lives as long as any process holds the descriptor or a mapping.

Shared memory is promised, not given: a page of a full /dev/shm kills whoever touches it first (SIGBUS). `create` therefore
reserves every page, and a /dev/shm that is too small is an error at that point. A file brought by the user is the user's: it must
not be truncated while it is a heap.

What may be written is decided by the descriptor, not by the mapping: a mapping of a descriptor that was opened read-only cannot
be made writable by any later `mprotect`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeAlias, runtime_checkable

import posix_ipc

from shmwasm.addresses import OS_PAGE
from shmwasm.errors import ArgumentError, ClosedError, HeapNoSpaceError, UnsupportedError
from shmwasm.posix.mappings import map_anywhere

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.shared_memory import SharedMemory
    from types import TracebackType

SHARED_MEMORY_DIRECTORY: Final = "/dev/shm"  # noqa: S108  the kernel's place for it; names in it are random and exclusive
NAME_PREFIX: Final = "/shmwasm-"
"""How the short-lived names of segments start, where one cannot be made without a name."""

# tmpfs undoes a reservation that a signal interrupts, so one large request would never end under an interval timer.
_RESERVE_STEP: Final = 64 << 20

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG})


@runtime_checkable
class HasDescriptor(Protocol):
    """Whatever has a `fileno()`."""

    def fileno(self) -> int:
        """Return the open descriptor."""
        ...


Source: TypeAlias = "SharedMemory | int | str | os.PathLike[str] | HasDescriptor"
"""What a preallocated heap can be made of; a `posix_ipc.SharedMemory` has a descriptor."""


def available_shared_memory() -> int:
    """Return how many bytes new segments can have in all.

    Raises:
        UnsupportedError: There is no /dev/shm.
    """
    try:
        status = os.statvfs(SHARED_MEMORY_DIRECTORY)
    except OSError as failure:
        raise UnsupportedError("POSIX shared memory", f"{SHARED_MEMORY_DIRECTORY} cannot be used: {failure.strerror}") from None
    if status.f_blocks == 0:  # mounted without a limit
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return status.f_bavail * status.f_frsize


class Segment:
    """An open segment. It owns its descriptor; `close` gives it up. Make one with `create` or `open`."""

    def __init__(self, descriptor: int, size: int, *, name_for_errors: str, read_only: bool) -> None:
        self._descriptor: int | None = descriptor
        self.size = size
        self.name_for_errors = name_for_errors
        self.read_only = read_only

    @classmethod
    def create(cls, size: int, *, name_for_errors: str, reserve: bool = True) -> Segment:
        """Create a segment of `size` zero bytes that has no name.

        Args:
            size: Bytes, at least 1.
            name_for_errors: The heap's name, for the errors.
            reserve: Whether to reserve all memory now; otherwise it is sparse, and `reserve` must precede the first touch.

        Raises:
            ArgumentError: The size is no size.
            HeapNoSpaceError: /dev/shm has less room. Nothing is left of the attempt.
            UnsupportedError: There is no POSIX shared memory here.
        """
        if size <= 0 or size >= 1 << 63:
            raise ArgumentError(f"a segment of {size} bytes was asked for; it needs at least 1 and less than 2**63")
        if reserve and size > (available := available_shared_memory()):
            # Known in advance: do not take the memory away from others for a moment first.
            raise HeapNoSpaceError(name_for_errors, size, available)
        segment = cls(_create_nameless(), size, name_for_errors=name_for_errors, read_only=False)
        try:
            segment._attempt(size, lambda: os.ftruncate(segment.descriptor, size))
            if reserve:
                segment.reserve(0, size)
        except BaseException:
            segment.close()
            raise
        return segment

    @classmethod
    def open(cls, source: Source, *, read_only: bool, name_for_errors: str = "preallocated") -> Segment:
        """Open memory that the caller has: a shared memory object, a descriptor, a file, or a path.

        The source stays the caller's and may be closed afterwards; the segment has a descriptor of its own.

        Raises:
            ArgumentError: The source is no regular file that can be mapped, is empty, or cannot be written to and `read_only`
                was not given.
        """
        descriptor = _descriptor_of(source, read_only=read_only)
        try:
            size = _check_mappable(descriptor, source, read_only=read_only)
            if read_only and _access_mode(descriptor) != os.O_RDONLY:
                writable, descriptor = descriptor, _reopen_read_only(descriptor)
                os.close(writable)
            return cls(descriptor, size, name_for_errors=name_for_errors, read_only=read_only)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def descriptor(self) -> int:
        """The open descriptor, which the segment keeps.

        Raises:
            ClosedError: The segment was closed.
        """
        if self._descriptor is None:
            raise ClosedError(f"the segment of {self.name_for_errors!r}")
        return self._descriptor

    def read_only_descriptor(self) -> int:
        """Return a new descriptor of the same memory that allows no writing, whatever its holder does. The caller closes it.

        Raises:
            ClosedError: The segment was closed.
        """
        return _reopen_read_only(self.descriptor)

    def reserve(self, offset: int, length: int) -> None:
        """Reserve the memory of [`offset`, `offset + length`), so that touching it cannot fail.

        Raises:
            HeapNoSpaceError: There is less room; what was reserved before stays reserved.
        """
        end = offset + length
        while offset < end:
            step = min(_RESERVE_STEP, end - offset)
            self._attempt(length, lambda offset=offset, step=step: os.posix_fallocate(self.descriptor, offset, step))  # type: ignore[misc]
            offset += step

    def close(self) -> None:
        """Close the descriptor. Mappings stay valid. May be called twice."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _attempt(self, requested: int, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as failure:
            if failure.errno not in _NO_SPACE:
                raise UnsupportedError(f"a segment of {self.size} bytes", str(failure)) from None
            available = available_shared_memory()
            if failure.errno == errno.EFBIG:
                available = min(available, max(resource.getrlimit(resource.RLIMIT_FSIZE)[0], 0))
            raise HeapNoSpaceError(self.name_for_errors, requested, available) from None


def _create_nameless() -> int:
    """Return a descriptor of a new, empty piece of shared memory that never has a name.

    Where the file system cannot make one without a name (EOPNOTSUPP, or EISDIR from an old kernel), it has one for a moment.
    """
    try:
        # O_EXCL: nobody can give it a name later either.
        flags = os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        return os.open(SHARED_MEMORY_DIRECTORY, flags, 0o600)
    except OSError as failure:
        if failure.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            raise _cannot_create(failure) from None
    return _create_and_unlink()


def _create_and_unlink() -> int:
    """Return a descriptor of a new, empty piece of shared memory whose name is gone again."""
    name = NAME_PREFIX + os.urandom(16).hex()
    try:
        try:
            descriptor: int = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600).fd
        finally:
            # Also when a signal's exception arrives between the two.
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(name)
    except (posix_ipc.Error, OSError) as failure:
        raise _cannot_create(failure) from None
    os.set_inheritable(descriptor, False)
    return descriptor


def _cannot_create(failure: Exception) -> UnsupportedError:
    return UnsupportedError("POSIX shared memory", f"a segment in {SHARED_MEMORY_DIRECTORY} cannot be made: {failure}")


def _descriptor_of(source: Source, *, read_only: bool) -> int:
    """Return a new descriptor of what `source` stands for."""
    from multiprocessing.shared_memory import SharedMemory  # noqa: PLC0415  the launcher does without (see there)

    try:
        match source:
            case bool():
                pass
            case int():
                return fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 0)
            case SharedMemory():
                access = os.O_RDONLY if read_only else os.O_RDWR
                return os.open(f"{SHARED_MEMORY_DIRECTORY}/{source.name.lstrip('/')}", access | os.O_CLOEXEC | os.O_NOFOLLOW)
            case posix_ipc.SharedMemory():
                return fcntl.fcntl(source.fd, fcntl.F_DUPFD_CLOEXEC, 0)
            case str() | os.PathLike():
                # O_NONBLOCK: opening a pipe must not wait for its other end.
                access = os.O_RDONLY if read_only else os.O_RDWR
                return os.open(source, access | os.O_CLOEXEC | os.O_NONBLOCK)
            case HasDescriptor():
                return fcntl.fcntl(source.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
    except OSError as failure:
        raise ArgumentError(f"preallocated memory {source!r} cannot be opened: {failure.strerror or failure}") from None
    except (ValueError, OverflowError) as failure:
        raise ArgumentError(f"preallocated memory {source!r} cannot be opened: {failure}") from None
    raise ArgumentError(f"{source!r} is no source of a preallocated heap: give shared memory, a descriptor, a file or a path")


def _check_mappable(descriptor: int, source: Source, *, read_only: bool) -> int:
    """Return the size in bytes of the memory behind `descriptor`.

    Raises:
        ArgumentError: It cannot be a heap.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ArgumentError(f"preallocated memory {source!r} is no regular file and no shared memory")
    if status.st_size == 0:
        raise ArgumentError(f"preallocated memory {source!r} is empty")
    if _access_mode(descriptor) == os.O_WRONLY:
        raise ArgumentError(f"preallocated memory {source!r} is open for writing only")
    if not read_only and _access_mode(descriptor) != os.O_RDWR:
        raise ArgumentError(f"preallocated memory {source!r} is open for reading only: pass read_only=True")
    # Only trying tells whether its file system can map it, and whether it is sealed against writing.
    map_anywhere(descriptor, min(status.st_size, OS_PAGE), writable=not read_only).close()
    return status.st_size


def _access_mode(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE


def _reopen_read_only(descriptor: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as failure:
        raise ArgumentError(f"descriptor {descriptor} cannot be reopened for reading only: {failure.strerror}") from None
