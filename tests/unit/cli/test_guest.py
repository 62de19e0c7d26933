"""The demo's guest by itself: in this process, on private memory."""

import hashlib
import random
import struct

import pytest
import wasmtime

from shmwasm.cli.digests import GUEST

JOB = struct.Struct("<II32s")


class Guest:
    def __init__(self):
        engine = wasmtime.Engine()
        self._store = wasmtime.Store(engine)
        self._exports = wasmtime.Instance(self._store, wasmtime.Module.from_file(engine, str(GUEST)), []).exports(self._store)
        self._memory = self._exports["memory"]
        self.start = self._memory.data_len(self._store)
        self._memory.grow(self._store, 4)

    def write(self, content, address):
        self._memory.write(self._store, content, address)

    def read(self, address, length):
        return bytes(self._memory.read(self._store, address, address + length))

    def call(self, name, *arguments):
        self._exports[name](self._store, *arguments)


@pytest.fixture(scope="module")
def guest():
    return Guest()


def test_one_message_of_any_length_is_digested(guest):
    content = random.Random(1).randbytes(1000)
    for length in [*range(200), 1000]:
        guest.write(content[:length], guest.start + 64)
        guest.call("digest", guest.start + 64, length, guest.start)
        assert guest.read(guest.start, 32) == hashlib.sha256(content[:length]).digest(), length


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 60])
def test_every_message_of_a_batch_is_digested_in_its_own_place(guest, count):
    rng = random.Random(count)
    messages = [rng.randbytes(rng.choice([0, 1, 55, 56, 63, 64, 65, 128, rng.randrange(3000)])) for _ in range(count)]
    table, address = b"", guest.start + JOB.size * count
    for message in messages:
        table += JOB.pack(address, len(message), b"")
        guest.write(message, address)
        address += len(message)
    guest.write(table, guest.start)
    guest.call("digest_many", guest.start, count)
    digests = [fields[2] for fields in JOB.iter_unpack(guest.read(guest.start, JOB.size * count))]
    assert digests == [hashlib.sha256(message).digest() for message in messages]
