"""Every message survives the wire, on its own channel alone; everything else is refused."""

from __future__ import annotations

import contextlib
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmwasm.errors import ProtocolError
from shmwasm.protocol import codec, messages

CHANNELS: dict[str, tuple[codec.Decoder[Any], Any]] = {
    "client to coordinator": (codec.client_messages, messages.ClientMessage),
    "coordinator to client": (codec.to_client, messages.CoordinatorToClient),
    "launcher to coordinator": (codec.launcher_messages, messages.LauncherMessage),
    "coordinator to launcher": (codec.to_launcher, messages.CoordinatorToLauncher),
    "worker to coordinator": (codec.worker_messages, messages.WorkerMessage),
    "coordinator to worker": (codec.to_worker, messages.CoordinatorToWorker),
    "client to worker": (codec.call_messages, messages.CallMessage),
    "worker to client": (codec.call_replies, messages.CallReply),
}

PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
    Any: st.none() | st.integers(-5, 5) | st.text(max_size=5),
}


STRANGERS = [
    messages.Fork(worker=2, plan=messages.SpawnPlan(module_key="", module_name=""), grants=[]),
    messages.Ready(),
    messages.Hello(request=1, version=messages.VERSION),
    messages.HostCall(request=1, index=0, arguments=[]),
    messages.Welcome(request=1, peer=2, version=messages.VERSION, address="", private=True),
    messages.MapChain(request=1, grants=[]),
]
"""A message of each of six channels; none belongs to all."""


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return values of any type that a message's field has."""
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if origin in {types.UnionType, typing.Union}:
        return st.one_of(*map(values, arguments))
    return structs(kind)


def structs(kind: Any) -> st.SearchStrategy[Any]:
    fields = {field.encode_name: values(field.type) for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **fields)


@pytest.mark.parametrize("channel", CHANNELS)
@given(data=st.data())
def test_every_message_of_a_channel_survives_it(channel, data):
    decoder, union = CHANNELS[channel]
    message = data.draw(values(union))
    assert decoder.decode(codec.encode(message)) == message


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_message_of_another_channel_is_refused(channel):
    decoder, union = CHANNELS[channel]
    for stranger in STRANGERS:
        if type(stranger) not in typing.get_args(union):
            with pytest.raises(ProtocolError):
                decoder.decode(codec.encode(stranger))


@pytest.mark.parametrize("packet", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", b"\x81\xa4type\xa5Hello", b"\xff" * 64, b"Hello"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_what_is_no_message_is_refused_with_its_size(channel, packet):
    with pytest.raises(ProtocolError, match=f"{len(packet)} bytes"):
        CHANNELS[channel][0].decode(packet)


@given(packet=st.binary(max_size=200))
def test_random_bytes_are_decoded_or_refused_and_nothing_else(packet):
    for decoder, _ in CHANNELS.values():
        with contextlib.suppress(ProtocolError):
            decoder.decode(packet)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "Hello", "request": "one", "version": 1},
        {"type": "Hello", "version": 1},
        {"type": "Lease", "request": 1, "heap": 1, "size_class": 1.5, "slabs": 1},
        {"type": "Release", "heap": 1, "ranges": [{"first": 1}]},
        {"type": "Nonsense", "request": 1},
    ],
)
def test_a_message_with_missing_or_mistyped_fields_is_refused(wrong):
    with pytest.raises(ProtocolError):
        codec.client_messages.decode(msgspec.msgpack.encode(wrong))
