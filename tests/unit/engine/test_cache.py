from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from shmwasm.engine.cache import Cache, default_directory
from shmwasm.errors import UnsupportedError

CODE = b"machine code" * 1000


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
