"""The cache of compiled modules: a private directory.

Theory
------
A cache file is machine code that this user will run, so nobody else may be able to write it. The directory is opened and checked
as opened (owner and mode); files are found relative to its descriptor, never through a link, and checked as opened too. A file
that fails is treated as absent. Files appear by renaming, so a reader never sees half of one.

Reading all of a large file to see whether it is intact would cost more than all else that loading a module does. Instead each
file bears a time of last change that follows from its key. Whatever writes to it, or puts another in its place, changes that
time, and the file is absent. (Its time of last access is the true one: it says which files to remove first.)

Who finds nothing makes it, and several may look for the same at once. `Cache.making` lets one of them work and the others wait.
It is a lock on one byte of one file that all keys share, at a place that follows from the key; the kernel takes it back from a
process that dies. Where it cannot be had, several make the same, and the last one's file stays.

A place that cannot be written to is no error: the code is then kept in memory, for this process and those it hands it to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmwasm.errors import UnsupportedError
from shmwasm.posix.signals import interrupts_let_through

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT_VARIABLE: Final = "SHMWASM_CACHE_DIR"
"""Overrides where the cache is."""

LIMIT: Final = 4 << 30
"""How many bytes a cache holds by default, before what was not used for the longest time is removed."""

_SUFFIX: Final = ".cwasm"
_LOCK: Final = ".lock"
_PATIENCE: Final = 600.0
"""Seconds to wait for another process's work: it may be stopped, and whoever waits can do the work as well."""

_LOOK_AGAIN: Final = 0.02
_ABANDONED: Final = 3600
"""Seconds after which the file of a writer that was killed is removed."""

_FLOCK: Final = struct.Struct("hhqqi4x")
"""The kernel's struct flock: type, whence, start, length, pid."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def default_directory() -> Path | None:
    """Return where the cache is: $SHMWASM_CACHE_DIR, else in $XDG_CACHE_HOME, else in ~/.cache; `None` without a home."""
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "shmwasm"
    try:
        return Path.home() / ".cache" / "shmwasm"
    except RuntimeError:
        return None


class Cache:
    """Compiled modules, kept by key in one directory.

    Args:
        directory: Where; `None` keeps nothing.
        limit: How many bytes it may hold. What is new is always kept.
    """

    def __init__(self, directory: Path | None, limit: int = LIMIT) -> None:
        self.directory = directory
        self._limit = limit

    @classmethod
    def default(cls) -> Cache:
        """Return the cache at `default_directory()`."""
        return cls(default_directory())

    def find(self, key: str) -> int | None:
        """Return a new read-only descriptor of the code kept under `key`, or `None`. The caller closes it.

        Raises:
            UnsupportedError: Others can write to the directory.
        """
        with self._opened() as directory:
            if directory is None:
                return None
            try:
                descriptor = os.open(key + _SUFFIX, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
            except OSError:
                return None
        status = os.fstat(descriptor)
        if not _is_private_file(status) or status.st_mtime != _stamp(key):
            os.close(descriptor)
            return None
        _mark(descriptor, key)
        return descriptor

    def keep(self, key: str, code: bytes | bytearray) -> int:
        """Keep `code` under `key`, in place of what was kept; return a new read-only descriptor of it. The caller closes it.

        Raises:
            UnsupportedError: Others can write to the directory.
        """
        with self._opened() as directory:
            descriptor = None
            if directory is not None:
                with contextlib.suppress(OSError):
                    descriptor = _write(directory, key, code)
                    _prune(directory, self._limit, key + _SUFFIX)
        return _in_memory(code) if descriptor is None else descriptor

    @contextlib.contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Wait until nobody else is making what is to be kept under `key`, and keep others from it meanwhile.

        Look for it again inside: it may be there now.

        Raises:
            UnsupportedError: Others can write to the directory.
        """
        lock = None
        with self._opened() as directory, contextlib.suppress(OSError):
            if directory is not None:
                lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        if lock is None:
            yield
            return
        place = zlib.crc32(key.encode())
        try:
            _wait_for(lock, place)
            yield
        finally:
            # A child that was forked meanwhile has the descriptor as well, so closing it is not enough.
            with contextlib.suppress(OSError):
                fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, place, 1, 0))
            os.close(lock)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Give the directory's descriptor, or `None` if there can be no directory.

        Raises:
            UnsupportedError: Others can write to it.
        """
        descriptor = None
        if self.directory is not None:
            with contextlib.suppress(OSError):
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if descriptor is not None:
                self._check(os.fstat(descriptor))
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _check(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid():
            raise UnsupportedError(
                f"the module cache {str(self.directory)!r}",
                f"it belongs to user {status.st_uid}, who could change the code in it; set {ENVIRONMENT_VARIABLE} to another",
            )
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise UnsupportedError(
                f"the module cache {str(self.directory)!r}",
                f"others can write to it and so change the code in it; run: chmod 700 {self.directory}",
            )


def _is_private_file(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & _WRITABLE_BY_OTHERS
        and status.st_size > 0
    )


def _stamp(key: str) -> int:
    """Return the time of last change that the file of `key` bears: whole seconds, which every archive keeps."""
    return zlib.crc32(key.encode()) % 1_000_000_000


def _mark(descriptor: int, key: str) -> None:
    """Give a file its time of last change, and now as its time of last access."""
    with contextlib.suppress(OSError):  # another file system may be read-only
        os.utime(descriptor, ns=(time.time_ns(), _stamp(key) * 1_000_000_000))


def _wait_for(lock: int, place: int) -> None:
    """Wait for the lock on one byte; give up where the file system has no such locks, or when patience ends."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            with interrupts_let_through():
                time.sleep(_LOOK_AGAIN)
        except OSError:
            return
        else:
            return


def _write(directory: int, key: str, code: bytes | bytearray) -> int:
    name = key + _SUFFIX
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            _write_all(descriptor, code)
            os.fdatasync(descriptor)  # or a power failure may leave the name with half of the content
            _mark(descriptor, key)
        finally:
            os.close(descriptor)
        # Opened before it is renamed: what is returned is what was written, whoever renames another over it.
        result = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.close(result)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    return result


def _prune(directory: int, limit: int, new: str) -> None:
    """Remove what was used longest ago until no more than `limit` bytes are left, and what killed writers left behind.

    Whoever has a file open keeps it.
    """
    kept: list[tuple[float, int, str]] = []
    oldest = time.time() - _ABANDONED
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                continue
            if name.endswith(_SUFFIX) and name != new:
                kept.append((status.st_atime, status.st_size, name))
            elif name.startswith(".") and _SUFFIX in name and status.st_ctime < oldest:
                os.unlink(name, dir_fd=directory)
            elif name == new:
                limit -= status.st_size
    kept.sort(reverse=True)
    for _, size, name in kept:
        limit -= size
        if limit < 0:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)


def _in_memory(code: bytes | bytearray) -> int:
    try:
        memory = os.memfd_create("shmwasm-module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _write_all(memory, code)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(memory)
    except OSError as failure:
        raise UnsupportedError("a compiled module in memory", str(failure)) from None


def _write_all(descriptor: int, code: bytes | bytearray) -> None:
    rest = memoryview(code)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
