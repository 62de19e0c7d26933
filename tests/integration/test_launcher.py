"""The launcher: what it forks, what it tells of deaths, and that nothing survives its coordinator."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shmwasm.posix.processes import send_signal, wait_gone
from shmwasm.protocol import messages
from waiting import PATIENCE

GUEST = """(module (func (export "number") (result i32) (i32.const 7))
  (func (export "spin") (loop $again (br $again))))"""


STARTING = """
import os, sys
registered = []
os.register_at_fork = lambda **_functions: registered.append(sys._getframe(1).f_globals["__name__"])
import wasmtime
from shmwasm.core import CORE_MODULE
from shmwasm.launcher import __main__ as launcher
engine = launcher.new_engine(parallel_compilation=False)
launcher.check_mapping(engine)
kept = launcher.rehearse(engine, wasmtime.Module.from_file(engine, str(CORE_MODULE)))
print(registered, flush=True)
os._exit(0)
"""
"""What a launcher does before its first fork."""


def test_a_killed_worker_is_reported_with_its_signal(launcher):
    worker = launcher.fork(GUEST)
    send_signal(worker.pidfd, signal.SIGKILL)
    assert launcher.hear() == messages.Exited(worker=worker.number, pid=worker.pid, signal=signal.SIGKILL, exit_code=None)


def test_a_worker_exits_with_code_0_when_it_is_told_to(launcher):
    worker = launcher.fork(GUEST)
    worker.tell(messages.Stop())
    assert launcher.hear() == messages.Exited(worker=worker.number, pid=worker.pid, signal=None, exit_code=0)


@pytest.mark.parametrize("channel", ["control", "calls"])
def test_a_worker_exits_with_code_0_when_a_channel_ends(launcher, channel):
    worker = launcher.fork(GUEST)
    getattr(worker, channel).close()
    assert launcher.hear() == messages.Exited(worker=worker.number, pid=worker.pid, signal=None, exit_code=0)


def test_a_worker_stops_only_between_calls(launcher):
    worker = launcher.fork(GUEST)
    requests = [worker.start_call("number") for _ in range(3)]
    worker.tell(messages.Stop())
    assert launcher.hear().exit_code == 0
    assert [worker.end_call(request) for request in requests] == [[7]] * 3


def test_fifty_workers_live_at_once(launcher):
    module = launcher.compile(GUEST)
    workers = [launcher.start_fork(module) for _ in range(50)]
    for _ in workers:
        assert isinstance(launcher.hear(), messages.Forked)
    assert {type(worker.hear()) for worker in workers} == {messages.Ready}
    assert len({worker.pid for worker in workers}) == 50
    assert [worker.call("number") for worker in workers] == [[7]] * 50


def test_no_worker_outlives_the_coordinator_even_if_it_loops(own_launcher):
    module = own_launcher.compile(GUEST)
    workers = [own_launcher.fork(module) for _ in range(3)]
    workers[0].start_call("spin")
    own_launcher.channel.close()
    assert all(wait_gone(worker.pidfd, PATIENCE) for worker in workers)
    assert own_launcher.process.wait(PATIENCE) == 0


def test_no_worker_outlives_a_killed_launcher(own_launcher):
    workers = [own_launcher.fork(GUEST) for _ in range(2)]
    workers[0].start_call("spin")
    own_launcher.process.kill()
    assert all(wait_gone(worker.pidfd, PATIENCE) for worker in workers)
    assert own_launcher.process.wait(PATIENCE) == -signal.SIGKILL


def test_an_artifact_that_is_no_code_is_refused_and_the_launcher_goes_on(launcher):
    module = launcher.compile(GUEST)
    memory = os.memfd_create("garbage")
    os.write(memory, b"garbage")
    garbage = type(module)("garbage", "garbage", module.facts, memory)
    worker = launcher.start_fork(garbage)
    garbage.close()
    refused = launcher.hear()
    assert isinstance(refused, messages.ForkFailed)
    assert refused.worker == worker.number
    assert refused.reason
    assert launcher.fork(module).call("number") == [7]


def test_a_module_is_kept_by_its_key(launcher):
    module = launcher.compile(GUEST)
    launcher.fork(module)
    memory = os.memfd_create("empty")
    same = type(module)(module.name, module.key, module.facts, memory)
    assert launcher.fork(same).call("number") == [7]
    same.close()


def test_a_worker_holds_no_descriptor_but_its_own(launcher):
    launcher.fork(GUEST)
    worker = launcher.fork(GUEST)
    worker.call("number")  # it has taken over what came with the ring
    targets = [str(entry.readlink()) for entry in Path(f"/proc/{worker.pid}/fd").iterdir() if int(entry.name) > 2]
    held = [target.split(":")[0] for target in targets if "shmwasm-module" not in target]  # the engine keeps its modules' files
    assert sorted(held) == ["anon_inode"] * 3 + ["socket"] * 2


def test_a_terminals_interrupt_does_not_end_a_worker(launcher):
    worker = launcher.fork(GUEST)
    send_signal(worker.pidfd, signal.SIGINT)
    assert worker.call("number") == [7]


def test_the_launcher_holds_no_descriptor_of_a_worker_that_is_gone(launcher):
    worker = launcher.fork(GUEST)
    directory = Path(f"/proc/{launcher.process.pid}/fd")
    before = len(list(directory.iterdir()))
    worker.calls.close()
    assert isinstance(launcher.hear(), messages.Exited)
    assert len(list(directory.iterdir())) == before - 1


def test_the_launcher_has_one_thread(launcher):
    launcher.fork(GUEST)
    assert len(list(Path(f"/proc/{launcher.process.pid}/task").iterdir())) == 1


def test_nothing_that_the_launcher_imports_acts_in_each_worker():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", STARTING]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("[]\n", "")
