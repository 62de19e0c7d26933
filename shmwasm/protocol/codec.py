"""Messages to bytes and back: one encoder for all, one decoder a channel and direction."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from shmwasm.errors import ProtocolError
from shmwasm.protocol import messages

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


def encode(message: messages.Message) -> bytes:
    """Return the message as one packet."""
    return _encoder.encode(message)


class Decoder(Generic[M]):
    """Decodes the packets of one direction of one channel."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)

    def decode(self, packet: bytes) -> M:
        """Return the packet's message.

        Raises:
            ProtocolError: The packet is not one of this direction's messages.
        """
        try:
            return self._decoder.decode(packet)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"a packet of {len(packet)} bytes is no message of this channel: {error}") from None


client_messages: Decoder[messages.ClientMessage] = Decoder(messages.ClientMessage)
to_client: Decoder[messages.CoordinatorToClient] = Decoder(messages.CoordinatorToClient)
launcher_messages: Decoder[messages.LauncherMessage] = Decoder(messages.LauncherMessage)
to_launcher: Decoder[messages.CoordinatorToLauncher] = Decoder(messages.CoordinatorToLauncher)
worker_messages: Decoder[messages.WorkerMessage] = Decoder(messages.WorkerMessage)
to_worker: Decoder[messages.CoordinatorToWorker] = Decoder(messages.CoordinatorToWorker)
call_messages: Decoder[messages.CallMessage] = Decoder(messages.CallMessage)
call_replies: Decoder[messages.CallReply] = Decoder(messages.CallReply)
