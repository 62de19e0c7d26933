"""The cache of compiled modules: a private directory.

Theory
------
A cache file is machine code that this user will run, so nobody else may be able to write it. The directory is opened and checked
as opened (owner and mode); files are found relative to its descriptor, never through a link, and checked as opened too. A file
that fails is treated as absent. Files appear by renaming, so a reader never sees half of one.

A place that cannot be written to is no error: the code is then kept in memory, for this process and those it hands it to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmwasm.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT_VARIABLE: Final = "SHMWASM_CACHE_DIR"
"""Overrides where the cache is."""

_SUFFIX: Final = ".cwasm"
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
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

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
        if not _is_private_file(os.fstat(descriptor)):
            os.close(descriptor)
            return None
        return descriptor

    def keep(self, key: str, code: bytes | bytearray) -> int:
        """Keep `code` under `key`, in place of what was kept; return a new read-only descriptor of it. The caller closes it.

        Raises:
            UnsupportedError: Others can write to the directory.
        """
        with self._opened() as directory:
            if directory is not None:
                with contextlib.suppress(OSError):
                    return _write(directory, key + _SUFFIX, code)
        return _in_memory(code)

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


def _write(directory: int, name: str, code: bytes | bytearray) -> int:
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            _write_all(descriptor, code)
            os.fdatasync(descriptor)  # or a power failure may leave the name with half of the content
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
