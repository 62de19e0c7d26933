"""The command line, as a user has it: one process for each command."""

import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from shmwasm.cli import main
from shmwasm.cli.digests import GUEST

ARITHMETIC = """(module
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "divide") (param i64 i64) (result i64 i64)
    (i64.div_s (local.get 0) (local.get 1)) (i64.rem_s (local.get 0) (local.get 1)))
  (func (export "half") (param f64) (result f64) (f64.mul (local.get 0) (f64.const 0.5)))
  (func (export "nothing"))
  (func (export "forever") (loop (br 0))))"""

ALLOCATING = """(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "place") (param i32) (result i32) (call $malloc (local.get 0))))"""

GREETING = """(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
    (drop (call $args_get (i32.const 64) (i32.const 1024)))
    (drop (call $environ_get (i32.const 512) (i32.const 2048)))
    (i32.store (i32.const 16) (i32.load (i32.const 68)))
    (i32.store (i32.const 20) (i32.const 5))
    (drop (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 40)))
    (i32.store (i32.const 16) (i32.const 2048))
    (i32.store (i32.const 20) (i32.const 8))
    (drop (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 40)))))"""


def command(*arguments):
    return [sys.executable, "-P", "-m", "shmwasm", *map(str, arguments)]


def shmwasm(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=50, check=False)


def in_this_process(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def facts(*arguments, exit_code=0):
    done = shmwasm(*arguments, "--json")
    assert done.returncode == exit_code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def arithmetic(tmp_path):
    path = tmp_path / "arithmetic.wat"
    path.write_text(ARITHMETIC)
    return path


@pytest.fixture
def directory(tmp_path):
    """Files of every kind: empty, small, of all block sizes, one larger than the heap, one with a name that is no text."""
    root = tmp_path / "files"
    (root / "deeper").mkdir(parents=True)
    for length in (0, 1, 55, 64, 1000, 65536, 100_000, 700_000):
        (root / f"{length}").write_bytes(bytes(index % 251 for index in range(length)))
    for index in range(300):
        (root / "deeper" / f"{index}").write_text(f"file {index}\n" * index)
    (root / "larger than the heap").write_bytes(b"0123456789abcdef" * (3 << 16))
    (root / "link").symlink_to(root / "1000")
    return root


def count(directory):
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return len(files), sum(path.stat().st_size for path in files)


class TestDemo:
    def test_every_file_is_digested_as_hashlib_does_with_no_byte_copied(self, directory):
        found = facts("demo", "--path", directory, "--instances", "2", "--heap", "1M")
        assert (found["files"], found["bytes"]) == count(directory)
        assert (found["differing"], found["changed"], found["skipped"]) == ([], [], [])
        assert found["instances"] == 2
        assert found["bytes_copied"] == 0
        assert found["files_mapped"] == 1
        assert found["argument_bytes"] > 0

    def test_the_same_job_by_multiprocessing_copies_every_byte(self, directory):
        peer = facts("demo", "--path", directory, "--instances", "2", "--heap", "2M")["multiprocessing"]
        assert (peer["files"], peer["bytes"]) == count(directory)
        assert peer["bytes_copied"] == peer["bytes"]

    def test_a_wrong_digest_is_named_and_gives_exit_code_1(self, tmp_path, directory):
        code = GUEST.read_bytes()
        constant = (0x6A09E667).to_bytes(4, "little")  # the first word of SHA-256's initial state
        assert constant in code
        corrupt = tmp_path / "corrupt.wasm"
        corrupt.write_bytes(code.replace(constant, bytes(4)))
        arguments = "demo", "--path", directory / "deeper", "--instances", "2", "--heap", "1M", "--guest", corrupt
        assert len(facts(*arguments, exit_code=1)["differing"]) == 300
        done = shmwasm(*arguments)
        assert done.returncode == 1
        assert "300 DIFFERENT from hashlib" in done.stdout

    def test_the_text_says_what_was_done_and_shows_no_bar_without_a_terminal(self, directory):
        done = shmwasm("demo", "--path", directory / "deeper", "--heap", "1M")
        assert (done.returncode, done.stderr) == (0, "")
        assert "All 300 digests are those of hashlib." in done.stdout
        assert "multiprocessing.Pool" in done.stdout

    def test_an_empty_directory_is_no_error(self, tmp_path):
        assert facts("demo", "--path", tmp_path)["files"] == 0

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["--heap", "64Q"], "'64Q' is no size"),
            (["--heap", "4K"], "4K is less than 1.0 MiB"),
            (["--heap", "5G"], "is more than"),
            (["--instances", "1"], "1 is not in the range x>=2"),
            (["--path", "/no/such/directory"], "does not exist"),
        ],
    )
    def test_a_wrong_option_is_named_with_exit_code_2(self, arguments, problem):
        done = in_this_process("demo", *arguments)
        assert done.exit_code == 2
        assert problem in " ".join(done.output.split())


class TestRun:
    def test_arguments_are_read_as_the_parameters_demand(self, arithmetic):
        assert shmwasm("run", arithmetic, "--invoke", "add", "0x10", "-20").stdout == "-4\n"
        assert in_this_process("run", arithmetic, "--invoke", "half", "3").output == "1.5\n"
        assert in_this_process("run", arithmetic, "--invoke", "divide", "--", "-7", "2").output == "-3 -1\n"
        assert in_this_process("run", arithmetic, "--invoke", "nothing").output == ""

    def test_every_instance_makes_the_call(self, arithmetic):
        found = facts("run", arithmetic, "--invoke", "divide", "7", "2", "--instances", "3")
        assert found == {"function": "divide", "results": [[3, 1]] * 3}

    def test_a_heap_is_attached_to_all_instances(self, tmp_path):
        path = tmp_path / "allocating.wat"
        path.write_text(ALLOCATING)
        results = facts("run", path, "--invoke", "place", "100", "--heap", "1M", "--instances", "2")["results"]
        addresses = [address % (1 << 32) for [address] in results]
        assert len(set(addresses)) == 2
        assert all(address >= (1 << 32) - (1 << 20) for address in addresses)

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ([], "--invoke is missing"),
            (["--invoke", "subtract", "1", "2"], "no function 'subtract'; its functions are: add, divide"),
            (["--invoke", "add", "1"], "takes 2 (i32, i32)"),
            (["--invoke", "add", "1", "two"], "'two' is no integer"),
            (["--invoke", "add", "1", "2", "--dir", "here"], "'here' has no '::'"),
            (["--invoke", "add", "1", "2", "--timeout", "0"], "0"),
        ],
    )
    def test_a_wrong_call_is_explained_with_exit_code_2(self, arithmetic, arguments, problem):
        done = in_this_process("run", arithmetic, *arguments)
        assert done.exit_code == 2
        assert problem in done.output

    def test_a_trap_is_a_message_with_exit_code_1(self, arithmetic):
        done = shmwasm("run", arithmetic, "--invoke", "divide", "1", "0")
        assert (done.returncode, done.stdout) == (1, "")
        assert "trapped in 'divide'" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_call_that_takes_too_long_is_interrupted(self, arithmetic):
        error = facts("run", arithmetic, "--invoke", "forever", "--timeout", "0.2", exit_code=1)["error"]
        assert error["kind"] == "CallTimeoutError"
        assert error["facts"]["timeout"] == pytest.approx(0.2)

    def test_a_file_that_is_no_module_is_refused_with_its_name(self, tmp_path):
        path = tmp_path / "picture.png"
        path.write_bytes(b"\x89PNG")
        error = facts("run", path, "--invoke", "add", exit_code=1)["error"]
        assert error["kind"] == "ModuleError"
        assert str(path) in error["message"]

    def test_a_wasi_command_gets_its_arguments_and_variables_and_may_print(self, tmp_path):
        path = tmp_path / "greeting.wat"
        path.write_text(GREETING)
        done = shmwasm("run", path, "--env", "NAME=you", "hello")
        assert (done.returncode, done.stdout) == (0, "helloNAME=you"), done.stderr

    def test_a_wasi_commands_exit_code_is_the_commands(self, tmp_path):
        path = tmp_path / "leaving.wat"
        path.write_text(
            """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                 (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 3))))"""
        )
        done = shmwasm("run", path)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
        assert facts("run", path, exit_code=3) == {"function": "_start", "exit_code": 3}


@pytest.fixture
def coordinator(tmp_path):
    path = tmp_path / "shmwasm.sock"
    process = subprocess.Popen(command("coordinator", "--socket", path), stdout=subprocess.PIPE, text=True)
    with process:
        assert "listening" in process.stdout.readline()
        yield path, process
        process.kill()


class TestCoordinator:
    @pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_and_removes_its_socket(self, coordinator, ending):
        path, process = coordinator
        process.send_signal(ending)
        assert process.wait(timeout=20) == 0
        assert not path.exists()

    def test_with_json_it_tells_where_it_listens_and_its_process(self, tmp_path):
        path = tmp_path / "shmwasm.sock"
        process = subprocess.Popen(command("coordinator", "--socket", path, "--json"), stdout=subprocess.PIPE, text=True)
        with process:
            text = process.stdout.readline()
            process.terminate()
            text += process.stdout.read()
        assert json.loads(text) == {"socket": str(path), "pid": process.pid}
        assert process.returncode == 0

    def test_verify_counts_the_heaps_of_all_clients(self, coordinator):
        path, _ = coordinator
        holder = subprocess.Popen(
            [sys.executable, "-P", "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with holder:
            assert holder.stdout.readline() == "holding\n"
            found = facts("verify", "--socket", path)
            assert found == {"socket": str(path), "heaps": 2, "sound": True}
            holder.communicate("\n", timeout=20)
        assert holder.returncode == 0

    def test_verify_without_a_coordinator_is_an_error(self, tmp_path):
        path = tmp_path / "nobody.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(path))
        error = facts("verify", "--socket", path, exit_code=1)["error"]
        assert error["kind"] == "CoordinatorLostError"

    def test_a_place_where_no_socket_can_be_is_an_error(self, tmp_path):
        done = shmwasm("coordinator", "--socket", tmp_path / "missing" / "shmwasm.sock")
        assert done.returncode == 1
        assert "cannot" in done.stderr
        assert "Traceback" not in done.stderr


HOLDER = """
import sys
from shmwasm import Runtime
with Runtime(connect=sys.argv[1]) as runtime:
    heaps = [runtime.create_shared_heap(1 << 20) for _ in range(2)]
    block = heaps[0].malloc(100)
    print("holding", flush=True)
    sys.stdin.readline()
"""


class TestDoctor:
    def test_every_finding_that_is_not_ok_has_a_remedy_and_the_engine_passes_its_self_test(self):
        done = shmwasm("doctor", "--json")
        found = json.loads(done.stdout)
        assert done.returncode == (1 if found["level"] == "problem" else 0)
        assert len(found["findings"]) == 13
        assert all(finding["remedy"] for finding in found["findings"] if finding["level"] != "ok")
        assert {finding["subject"]: finding["level"] for finding in found["findings"]}["wasmtime"] == "ok"


@pytest.mark.parametrize("name", ["demo", "run", "include-path", "coordinator", "verify", "doctor"])
def test_the_help_of_a_command_has_an_example_and_json(name):
    done = in_this_process(name, "--help")
    assert done.exit_code == 0
    assert "Example" in done.output
    assert f"shmwasm {name}" in done.output
    assert "--json" in done.output


def test_the_version_is_the_package_s():
    assert shmwasm("--version").stdout.strip().endswith(metadata.version("shmwasm"))


def test_the_packaged_guest_is_in_the_package():
    assert hashlib.sha256(GUEST.read_bytes()).digest()
    assert GUEST.with_suffix(".c").is_file()


def test_the_include_path_has_the_guest_kit_for_c_and_zig():
    directory = Path(shmwasm("include-path").stdout.strip())
    assert {path.name for path in directory.iterdir()} == {"shmwasm", "shmwasm.h", "shmwasm.zig"}
    parts = {path.name for path in (directory / "shmwasm").iterdir()}
    for name in ("shmwasm.h", "shmwasm.zig"):
        assert set(re.findall(r'"shmwasm/(\w+\.\w+)"', (directory / name).read_text())) <= parts
    assert json.loads(shmwasm("include-path", "--json").stdout) == {"path": str(directory)}
