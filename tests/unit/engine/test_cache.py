from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shmwasm.engine.cache import Cache, default_directory
from shmwasm.errors import UnsupportedError

CODE = b"machine code" * 1000


def _files(cache: Cache) -> list[Path]:
    assert cache.directory is not None
    return sorted(cache.directory.glob("*.cwasm"))


def _keep(cache: Cache, key: str, code: bytes) -> None:
    os.close(cache.keep(key, code))


def _read(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)


def _found(cache: Cache, key: str) -> bytes | None:
    descriptor = cache.find(key)
    return None if descriptor is None else _read(descriptor)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "deep" / "cache")


def test_what_was_kept_is_found_by_its_key_only(cache):
    assert _found(cache, "key") is None
    assert _read(cache.keep("key", CODE)) == CODE
    assert _found(cache, "key") == CODE
    assert _found(cache, "other") is None


def test_keeping_again_replaces_and_leaves_readers_what_they_opened(cache):
    first = cache.keep("key", CODE)
    os.close(cache.keep("key", b"newer"))
    assert _found(cache, "key") == b"newer"
    assert _read(first) == CODE
    assert len(list(cache.directory.iterdir())) == 1


def test_directory_and_files_are_private(cache):
    os.close(cache.keep("key", CODE))
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    (file,) = cache.directory.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_file_that_others_can_write_to_is_ignored(cache):
    os.close(cache.keep("key", CODE))
    (file,) = cache.directory.iterdir()
    for mode in (0o620, 0o602):
        file.chmod(mode)
        assert _found(cache, "key") is None
    file.chmod(0o644)
    assert _found(cache, "key") == CODE


def test_links_pipes_and_empty_files_are_ignored(cache, tmp_path):
    os.close(cache.keep("key", CODE))
    (file,) = cache.directory.iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert _found(cache, "key") is None
    file.unlink()
    os.mkfifo(file)
    assert _found(cache, "key") is None
    file.unlink()
    file.touch(0o600)
    assert _found(cache, "key") is None
    assert _read(cache.keep("key", CODE)) == CODE
    assert _found(cache, "key") == CODE


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_directory_that_others_can_write_to_is_refused_by_name(cache, mode):
    cache.directory.mkdir(parents=True)
    cache.directory.chmod(mode)
    for use in (lambda: cache.find("key"), lambda: cache.keep("key", CODE)):
        with pytest.raises(UnsupportedError, match=f"chmod 700 {cache.directory}"):
            use()


def test_directory_of_another_user_is_refused_by_name(cache):
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    cache.directory.mkdir(parents=True)
    os.chown(cache.directory, 65534, 65534)
    with pytest.raises(UnsupportedError, match=r"belongs to user 65534.*SHMWASM_CACHE_DIR"):
        cache.find("key")


@pytest.mark.parametrize("place", ["none", "under a file", "on a read-only system"])
def test_code_stays_in_memory_where_nothing_can_be_written(tmp_path, place):
    (tmp_path / "file").touch()
    cache = Cache(
        {"none": None, "under a file": tmp_path / "file" / "cache", "on a read-only system": Path("/proc/shmwasm")}[place]
    )
    assert cache.find("key") is None
    descriptor = cache.keep("key", CODE)
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert _read(descriptor) == CODE


def test_failed_write_leaves_nothing(cache):
    os.close(cache.keep("key", CODE))
    (file,) = cache.directory.iterdir()
    file.unlink()
    file.mkdir()  # nothing can be renamed over a directory
    assert _read(cache.keep("key", CODE)) == CODE
    assert list(cache.directory.iterdir()) == [file]


def test_place_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SHMWASM_CACHE_DIR", raising=False)
    assert default_directory() == tmp_path / ".cache" / "shmwasm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == tmp_path / ".cache" / "shmwasm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory() == tmp_path / "xdg" / "shmwasm"
    monkeypatch.setenv("SHMWASM_CACHE_DIR", str(tmp_path / "own"))
    assert default_directory() == tmp_path / "own" == Cache.default().directory


def test_a_file_that_was_changed_is_absent_though_its_size_is_the_same(cache):
    _keep(cache, "key", CODE)
    (file,) = _files(cache)
    with file.open("r+b") as damaged:
        damaged.seek(len(CODE) // 2)
        damaged.write(b"!")
    assert _found(cache, "key") is None
    _keep(cache, "key", CODE)
    assert _found(cache, "key") == CODE


def test_a_file_of_another_key_is_absent(cache):
    _keep(cache, "one", CODE)
    _keep(cache, "two", b"other")
    (cache.directory / "one.cwasm").rename(cache.directory / "two.cwasm")
    assert _found(cache, "two") is None


def test_a_copy_that_keeps_times_to_the_second_is_as_good(cache, tmp_path):
    _keep(cache, "key", CODE)
    (file,) = _files(cache)
    copy = Cache(tmp_path / "copy")
    copy.directory.mkdir(mode=0o700)
    shutil.copy(file, copy.directory / file.name)
    (copy.directory / file.name).chmod(0o600)
    os.utime(copy.directory / file.name, (0, int(file.stat().st_mtime)))
    assert _found(copy, "key") == CODE


def test_what_was_used_longest_ago_is_removed_first(tmp_path):
    cache = Cache(tmp_path / "cache", limit=3000)
    for key in ("a", "b", "c"):
        _keep(cache, key, b"x" * 1000)
        os.utime(cache.directory / f"{key}.cwasm", (ord(key), (cache.directory / f"{key}.cwasm").stat().st_mtime))
    assert _found(cache, "a") is not None  # used just now
    _keep(cache, "d", b"x" * 1000)
    assert [file.stem for file in _files(cache)] == ["a", "c", "d"]


def test_what_is_new_is_kept_though_it_alone_exceeds_the_limit(tmp_path):
    cache = Cache(tmp_path / "cache", limit=10)
    _keep(cache, "a", CODE)
    _keep(cache, "b", CODE)
    assert [file.stem for file in _files(cache)] == ["b"]
    assert _found(cache, "b") == CODE


def test_what_a_killed_writer_left_is_removed_only_once_it_is_old(cache, monkeypatch):
    _keep(cache, "key", CODE)
    left = cache.directory / ".key.cwasm.0123456789abcdef"
    left.write_bytes(b"half")
    _keep(cache, "other", CODE)
    assert left.exists()
    monkeypatch.setattr("shmwasm.engine.cache._ABANDONED", -1)
    _keep(cache, "third", CODE)
    assert not left.exists()
    assert (cache.directory / "key.cwasm").exists()


def test_only_one_makes_what_has_one_key(cache):
    tries, entered = threading.Event(), threading.Event()

    def second() -> None:
        tries.set()
        with cache.making("key"):
            entered.set()

    thread = threading.Thread(target=second)
    with cache.making("key"):
        thread.start()
        tries.wait()
        with cache.making("another key"):
            assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()


def test_a_killed_maker_holds_up_nobody(cache):
    program = "import sys; from pathlib import Path; from shmwasm.engine.cache import Cache\n"
    program += "with Cache(Path(sys.argv[1])).making('key'): print('made', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(cache.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout.readline() == "made\n"
        done = threading.Event()

        def wait() -> None:
            with cache.making("key"):
                done.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not done.wait(0.1)
        maker.kill()
        thread.join()
        assert done.is_set()


def test_a_child_forked_by_the_maker_does_not_hold_the_lock(cache):
    with cache.making("key"):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with cache.making("key"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_stopped_maker_is_waited_for_no_longer_than_patience_lasts(cache, monkeypatch):
    monkeypatch.setattr("shmwasm.engine.cache._PATIENCE", 0.05)
    with cache.making("key"), cache.making("key"):
        _keep(cache, "key", CODE)
    assert _found(cache, "key") == CODE


def test_where_nothing_can_be_written_everybody_makes_his_own(tmp_path):
    with Cache(None).making("key"), Cache(Path("/proc/shmwasm")).making("key"), Cache(Path("/proc/shmwasm")).making("key"):
        pass
