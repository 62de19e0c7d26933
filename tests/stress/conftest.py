"""Fixtures of the stress suite.

`SHMWASM_STRESS` multiplies how often everything is done (1 by default, for CI; `make soak` uses more). `SHMWASM_SEED` repeats a
run: every test prints the seed of its random choices.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmwasm import Runtime
from shmwasm.client.blocks import Block
from shmwasm.client.heaps import SharedHeap
from shmwasm.client.instances import Instance
from shmwasm.errors import CoordinatorLostError, HeapExhaustedError
from shmwasm.testing.leaks import MARK
from waiting import PATIENCE

HERE = Path(__file__).parent
ENTRIES = 64
"""Cells of a ledger, see `guest.wat`."""
"""Seconds that anything may take which is certain to happen; never waited in full."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.stress)
            # A soak runs longer than the rest of the tests may, and so does a loaded machine.
            item.add_marker(pytest.mark.timeout(300 * max(1.0, _scale())))


def _scale() -> float:
    return float(os.environ.get("SHMWASM_STRESS", "1"))


class Ledger:
    """A block of cells that a guest keeps its blocks' addresses in (see `guest.wat`), as the host reads it."""

    def __init__(self, heap: SharedHeap) -> None:
        self._heap = heap
        self.block = heap.calloc(ENTRIES, 4)
        self.cells = self.block.view.cast("I")

    def fill(self, count: int, rng: random.Random) -> None:
        """Put blocks of this process into the first cells, for guests to free."""
        for cell in range(count):
            address = self._heap.malloc_address(rng.choice([8, 100, 1000, 40_000]), rng.choice([16, 64, 4096]))
            offset = address - self._heap.start
            self._heap.view[offset : offset + 4] = (address ^ 0x5BD1E995).to_bytes(4, "little")
            self.cells[cell] = address

    def clear(self) -> int:
        """Check and free every block in the cells, whoever allocated it; return how many there were."""
        held = [address for address in self.cells if address]
        for address in held:
            word = self._heap.block_at(address).view[:4]
            assert int.from_bytes(word, "little") == address ^ 0x5BD1E995
            self._heap.free(address)
        for cell in range(ENTRIES):
            self.cells[cell] = 0
        return len(held)

    def close(self) -> int:
        """Clear it, and free the ledger itself."""
        held = self.clear()
        self.cells.release()
        self.block.free()
        return held


@pytest.fixture
def times() -> Callable[[int], int]:
    """Scale how often something is done."""
    return lambda count: max(1, round(count * _scale()))


@pytest.fixture
def rng() -> random.Random:
    """A source of random choices, whose seed is printed."""
    seed = int(os.environ.get("SHMWASM_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SHMWASM_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def guest_path() -> Path:
    return HERE / "guest.wat"


@pytest.fixture
def new_ledger() -> type[Ledger]:
    return Ledger


@pytest.fixture
def allocate_all() -> Callable[[SharedHeap, int], list[Block]]:
    """Allocate blocks of one size until there is no room for one more."""

    def allocate(heap: SharedHeap, size: int) -> list[Block]:
        blocks: list[Block] = []
        with contextlib.suppress(HeapExhaustedError):
            while True:
                blocks.append(heap.malloc(size))
        return blocks

    return allocate


@pytest.fixture
def signal_worker() -> Callable[[Instance, int], bool]:
    """Send a signal to an instance's process, and to no other that got its number; return whether it was still there."""

    def send(instance: Instance, number: int = signal.SIGKILL) -> bool:
        try:
            pidfd = os.pidfd_open(instance.pid)
        except ProcessLookupError:
            return False
        try:
            # The process of that number is the worker as long as the coordinator has not said that the worker is gone.
            if not instance.alive:
                return False
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    return send


def _program_environment() -> dict[str, str]:
    """Return the environment in which a program of `programs/` finds the others, and what tests share.

    Also where its own directory is not looked into (PYTHONSAFEPATH).
    """
    path = [str(HERE / "programs"), str(HERE.parent / "support"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


@pytest.fixture
def program_environment() -> dict[str, str]:
    """The environment of a program of `programs/` that a test starts itself."""
    return _program_environment()


class Program:
    """A program of `programs/`, in a process of its own; it speaks JSON, a value a line."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "programs" / name), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_program_environment(),
        )
        self.pid = self.process.pid
        self._received = b""
        self._ended = False

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Return the next value that it says; None at its end."""
        deadline = time.monotonic() + timeout
        assert self.process.stdout is not None
        while b"\n" not in self._received and not self._ended:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the program said nothing within {timeout} s"
            received = os.read(self.process.stdout.fileno(), 65536)
            self._ended = not received
            self._received += received
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        return json.loads(line)

    def tell(self, value: Any) -> None:
        """Say a value to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def close(self) -> None:
        """End it, if it has not ended, and reap it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # what it was told last, it never read


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """Start programs of `programs/`; they are ended with the test."""
    started: list[Program] = []

    def start(name: str, *arguments: object) -> Program:
        started.append(Program(name, *map(str, arguments)))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def shared_coordinator(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `shmwasm coordinator`, with `.socket` for its path; it ends with the test."""
    path = tmp_path / "shared.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "shmwasm", "coordinator", "--socket", str(path), "--json"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline(), "the coordinator did not start"
    process.socket = path  # type: ignore[attr-defined]
    yield process
    process.terminate()
    process.wait(PATIENCE)
    process.stdout.close()
    assert not path.exists()


@pytest.fixture
def joined(shared_coordinator: subprocess.Popen[bytes]) -> Iterator[Runtime]:
    """A client of the shared coordinator."""
    with Runtime(connect=shared_coordinator.socket) as runtime:  # type: ignore[attr-defined]
        yield runtime


@pytest.fixture(scope="session")
def common_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of one coordinator for the whole run: the workers of pytest-xdist share it. The last to leave ends it.

    It is nobody's child, as it may outlive whichever process needed it first.
    """
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "common"
    directory.mkdir(exist_ok=True)
    socket, pid_file, users = directory / "socket", directory / "pid", directory / "users"
    with _alone(directory):
        if not users.exists():
            _start_detached(socket, pid_file)
        users.write_text(f"{int(users.read_text()) + 1 if users.exists() else 1}")
    yield socket
    with _alone(directory):
        users.write_text(f"{int(users.read_text()) - 1}")
        if users.read_text() == "0":
            users.unlink()
            _end_detached(socket, int(pid_file.read_text()))


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_detached(socket: Path, pid_file: Path) -> None:
    command = [sys.executable, "-m", "shmwasm", "coordinator", "--socket", str(socket)]
    start = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, start_new_session=True).pid)"
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    pid_file.write_bytes(subprocess.check_output([sys.executable, "-W", "ignore", "-c", start, *command], env=environment))
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with Runtime(connect=socket):
                return
        except CoordinatorLostError:
            assert time.monotonic() < deadline, "the coordinator did not start"
            time.sleep(0.01)


def _end_detached(socket: Path, pid: int) -> None:
    with Runtime(connect=socket) as runtime:
        assert runtime.verify() == 0
        status = runtime.status()
        assert (status["clients"], status["heaps"], status["workers"]) == (1, [], [])
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert select.select([pidfd], [], [], PATIENCE)[0], "the coordinator did not end"
    finally:
        os.close(pidfd)
    assert not socket.exists()
