"""The functions of WASI preview 1, and which of their parameters are pointers to what: one table, the adapters' source.

A parameter here is a parameter of the specification; one that says where bytes are may be two of the function's (a pointer and a
length). Sizes and alignments are those of the specification's types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Number:
    """A value that WASI only looks at."""

    kind: Literal["i32", "i64"]


@dataclass(frozen=True)
class Result:
    """A pointer to one value that WASI writes."""

    size: int
    alignment: int


@dataclass(frozen=True)
class Text:
    """A pointer and a length: bytes that WASI reads."""


@dataclass(frozen=True)
class Room:
    """A pointer and a length: bytes that WASI writes. `filled` says how many of them, if the call succeeds.

    "counted": as many as the function's last parameter, a `Result`, says; "all"; or "some", if nothing tells.
    """

    filled: Literal["counted", "all", "some"]


@dataclass(frozen=True)
class Items:
    """A pointer to items of 8-byte alignment, as many as the function's parameter number `counted_by` says."""

    size: int
    counted_by: int
    written: bool


@dataclass(frozen=True)
class Vectors:
    """A pointer and a count: an array of buffers, each a pointer and a length, that WASI reads or, if `written`, writes."""

    written: bool


@dataclass(frozen=True)
class Strings:
    """Two pointers, to an array of pointers and to the strings that they point to; `sizes` is the function that says how many."""

    sizes: str


Parameter = Number | Result | Text | Room | Items | Vectors | Strings

I32: Final = Number("i32")
I64: Final = Number("i64")
_BYTE_COUNT: Final = Result(4, 4)
_DESCRIPTOR: Final = Result(4, 4)
_TIME: Final = Result(8, 8)
_OFFSET: Final = Result(8, 8)
_FILE_STATUS: Final = Result(64, 8)
_DESCRIPTOR_STATUS: Final = Result(24, 8)
_PREOPEN: Final = Result(8, 4)
_FLAGS: Final = Result(2, 2)
_PATH: Final = Text()
_SOURCES: Final = Vectors(written=False)
_TARGETS: Final = Vectors(written=True)

NO_RESULT: Final = "proc_exit"
"""The function that does not return; every other one returns an error number, 0 if it succeeded."""

FUNCTIONS: Final[dict[str, tuple[Parameter, ...]]] = {
    "args_get": (Strings("args_sizes_get"),),
    "args_sizes_get": (_BYTE_COUNT, _BYTE_COUNT),
    "environ_get": (Strings("environ_sizes_get"),),
    "environ_sizes_get": (_BYTE_COUNT, _BYTE_COUNT),
    "clock_res_get": (I32, _TIME),
    "clock_time_get": (I32, I64, _TIME),
    "fd_advise": (I32, I64, I64, I32),
    "fd_allocate": (I32, I64, I64),
    "fd_close": (I32,),
    "fd_datasync": (I32,),
    "fd_fdstat_get": (I32, _DESCRIPTOR_STATUS),
    "fd_fdstat_set_flags": (I32, I32),
    "fd_fdstat_set_rights": (I32, I64, I64),
    "fd_filestat_get": (I32, _FILE_STATUS),
    "fd_filestat_set_size": (I32, I64),
    "fd_filestat_set_times": (I32, I64, I64, I32),
    "fd_pread": (I32, _TARGETS, I64, _BYTE_COUNT),
    "fd_prestat_get": (I32, _PREOPEN),
    "fd_prestat_dir_name": (I32, Room("some")),
    "fd_pwrite": (I32, _SOURCES, I64, _BYTE_COUNT),
    "fd_read": (I32, _TARGETS, _BYTE_COUNT),
    "fd_readdir": (I32, Room("counted"), I64, _BYTE_COUNT),
    "fd_renumber": (I32, I32),
    "fd_seek": (I32, I64, I32, _OFFSET),
    "fd_sync": (I32,),
    "fd_tell": (I32, _OFFSET),
    "fd_write": (I32, _SOURCES, _BYTE_COUNT),
    "path_create_directory": (I32, _PATH),
    "path_filestat_get": (I32, I32, _PATH, _FILE_STATUS),
    "path_filestat_set_times": (I32, I32, _PATH, I64, I64, I32),
    "path_link": (I32, I32, _PATH, I32, _PATH),
    "path_open": (I32, I32, _PATH, I32, I64, I64, I32, _DESCRIPTOR),
    "path_readlink": (I32, _PATH, Room("counted"), _BYTE_COUNT),
    "path_remove_directory": (I32, _PATH),
    "path_rename": (I32, _PATH, I32, _PATH),
    "path_symlink": (_PATH, I32, _PATH),
    "path_unlink_file": (I32, _PATH),
    "poll_oneoff": (Items(48, 2, written=False), Items(32, 2, written=True), I32, _BYTE_COUNT),
    NO_RESULT: (I32,),
    "proc_raise": (I32,),
    "random_get": (Room("all"),),
    "sched_yield": (),
    "sock_accept": (I32, I32, _DESCRIPTOR),
    "sock_recv": (I32, _TARGETS, I32, _BYTE_COUNT, _FLAGS),
    "sock_send": (I32, _SOURCES, I32, _BYTE_COUNT),
    "sock_shutdown": (I32, I32),
}
"""Every function, with its parameters."""


def value_types(parameters: tuple[Parameter, ...]) -> list[str]:
    """Return the WebAssembly types of the parameters."""
    kinds: list[str] = []
    for parameter in parameters:
        match parameter:
            case Number(kind):
                kinds.append(kind)
            case Result() | Items():
                kinds.append("i32")
            case Text() | Room() | Vectors() | Strings():
                kinds += ["i32", "i32"]
    return kinds
