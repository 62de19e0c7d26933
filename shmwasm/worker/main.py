"""What a forked worker does, from its first instruction to its exit.

All that it needs was imported before the fork: an import afterwards would cost time, and private memory in each worker. But for
`random`, which a host function may import: so it is seeded in each worker by itself.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from shmwasm.errors import ShmwasmError, to_wire
from shmwasm.posix.channels import Channel
from shmwasm.posix.processes import set_parent_death_signal
from shmwasm.protocol import messages
from shmwasm.worker.instance import Instance
from shmwasm.worker.leaving import leave
from shmwasm.worker.links import ControlLink
from shmwasm.worker.service import serve

if TYPE_CHECKING:
    from shmwasm.worker.instance import Ground

_CONTROL: Final = 2
_CALLS: Final = 3
_FIRST_GRANTED: Final = 4
"""Places of the descriptors in `messages.Fork`; the first two are artifacts, which the launcher has loaded already."""


def run_worker(launcher: int, message: messages.Fork, descriptors: Sequence[int], ground: Ground) -> NoReturn:
    """Make the instance and serve it, or say why it cannot be made; then exit.

    Args:
        launcher: The parent's process id.
        message: What was asked for.
        descriptors: Those that came with `message`.
        ground: What the instance is made from.
    """
    if not set_parent_death_signal(signal.SIGKILL, parent=launcher):
        leave(os.EX_UNAVAILABLE)
    control = ControlLink(Channel.from_descriptor(descriptors[_CONTROL]))
    try:
        instance = Instance(
            message,
            ground,
            granted=descriptors[_FIRST_GRANTED:],
            control=control,
            calls=Channel.from_descriptor(descriptors[_CALLS]),
        )
    except ShmwasmError as error:
        code, facts = to_wire(error)
        control.send(messages.StartFailed(code=code, facts=facts))
        leave(os.EX_UNAVAILABLE)
    control.send(messages.Ready())
    gc.enable()  # what was there before the fork stays out of the collector's sight
    serve(instance, control)
