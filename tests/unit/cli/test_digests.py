import hashlib
import os
from dataclasses import replace

import pytest

from shmwasm.cli.digests import Digested, Tally, check, find_files


@pytest.fixture
def digested(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return Digested(path, 7, path.stat().st_mtime_ns, hashlib.sha256(b"content").digest())


def nothing(_done):
    pass


def test_a_true_digest_neither_differs_nor_changed(digested):
    progress = []
    verdict = check([digested], progress.append)
    assert (verdict.differing, verdict.changed) == ([], [])
    assert progress == [7]


def test_a_digest_with_one_wrong_bit_differs(digested):
    wrong = bytes([digested.digest[0] ^ 1]) + digested.digest[1:]
    assert check([replace(digested, digest=wrong)], nothing).differing == [digested.path]


def test_a_file_that_was_written_meanwhile_is_not_compared(digested):
    digested.path.write_bytes(b"another")
    os.utime(digested.path, ns=(0, digested.modified_ns + 1))
    verdict = check([digested], nothing)
    assert (verdict.differing, verdict.changed) == ([], [digested.path])


def test_a_file_that_vanished_is_not_compared(digested):
    digested.path.unlink()
    assert check([digested], nothing).changed == [digested.path]


def test_every_regular_file_is_found_in_order_and_no_link(tmp_path):
    for name in ("b/two", "a/one", "a/site-packages/no", "three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "three")
    found = [str(path.relative_to(tmp_path)) for path in find_files(tmp_path, skip=frozenset({"site-packages"}))]
    assert found == ["three", "a/one", "b/two"]


def test_buffers_count_as_content_and_numbers_as_numbers():
    tally = Tally()
    tally.count_call([1, b"four", memoryview(bytearray(8)).cast("I"), 3])
    assert (tally.content_bytes, tally.argument_bytes) == (12, 16)
