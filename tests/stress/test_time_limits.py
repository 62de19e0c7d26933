"""Time limits by the thousand: each ends its own call, and no worker."""

from __future__ import annotations

import asyncio
import threading

from shmwasm.errors import CallTimeoutError

CALLS = 10_000
LIMIT = 0.001


def test_ten_thousand_endless_loops_time_out_and_the_workers_are_the_same_processes(runtime, guest_path, times):
    ended = []

    def wait_for_each(instance, count):
        for _ in range(count):
            try:
                instance.call("spin", timeout=LIMIT)
            except CallTimeoutError as error:
                ended.append(error)

    def await_many(instance, count):
        async def one():
            try:
                await instance.call_async("spin", timeout=LIMIT)
            except CallTimeoutError as error:
                ended.append(error)

        async def all_of_them():
            await asyncio.gather(*(one() for _ in range(count)))

        asyncio.run(all_of_them())

    count = times(CALLS // 2)
    with runtime.load(guest_path) as module, runtime.spawn(module) as first, runtime.spawn(module) as second:
        pids = {first.pid, second.pid}
        threads = [
            threading.Thread(target=wait_for_each, args=(first, count)),
            threading.Thread(target=await_many, args=(second, count)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ended) == 2 * count
        assert {worker["pid"] for worker in runtime.status()["workers"]} == pids
        for instance in (first, second):
            instance.call("nothing")
