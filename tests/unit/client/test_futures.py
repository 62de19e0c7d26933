"""Futures that are waited for in a main thread that is interrupted."""

from __future__ import annotations

from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait

import pytest

import steps
from shmwasm.client.futures import SafeFuture
from waiting import PATIENCE

STEPS = 300


def new_futures(count: int = 2) -> list[SafeFuture[int]]:
    return [SafeFuture() for _ in range(count)]


def complete_elsewhere(futures: list[SafeFuture[int]]) -> list[int]:
    """Complete futures in another thread, as the one that reads for a runtime does; return their results."""

    def complete() -> None:
        for number, future in enumerate(futures):
            if not future.done():
                future.set_result(number)

    with ThreadPoolExecutor(1) as other:
        other.submit(complete).result(PATIENCE)
    return [future.result(PATIENCE) for future in futures]


def wait_for_all(futures: list[SafeFuture[int]]) -> None:
    wait(futures, 0.0)


def wait_for_the_first(futures: list[SafeFuture[int]]) -> None:
    wait(futures, 0.0, FIRST_COMPLETED)


def take_as_completed(futures: list[SafeFuture[int]]) -> None:
    with pytest.raises(TimeoutError):
        next(as_completed(futures, 0.0))


def ask_for_the_result(futures: list[SafeFuture[int]]) -> None:
    with pytest.raises(TimeoutError):
        futures[0].result(0.0)


def look(futures: list[SafeFuture[int]]) -> None:
    futures[0].done()
    futures[0].add_done_callback(lambda _: None)


@pytest.mark.parametrize("ask", [wait_for_all, wait_for_the_first, take_as_completed, ask_for_the_result, look])
def test_a_future_can_be_completed_whichever_step_of_a_wait_ctrl_c_ended(ask) -> None:
    futures = new_futures()

    def work() -> None:
        ask(futures)

    for _ in steps.chosen(work, STEPS):
        assert complete_elsewhere(futures) == [0, 1]
        futures[:] = new_futures()


def test_futures_are_waited_for_together_with_python_s_own() -> None:
    ours, theirs = SafeFuture[int](), Future[int]()
    with ThreadPoolExecutor(2) as threads:
        waits = [threads.submit(wait, [ours, theirs], PATIENCE, when) for when in (ALL_COMPLETED, FIRST_COMPLETED)]
        theirs.set_result(1)
        ours.set_result(2)
        assert ours in waits[0].result(PATIENCE).done
        assert theirs in waits[1].result(PATIENCE).done
    assert {one.result() for one in as_completed([ours, theirs])} == {1, 2}
