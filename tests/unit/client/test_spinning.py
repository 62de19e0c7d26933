"""Who polls, depending on how many processors there are."""

from __future__ import annotations

from shmwasm.client.spinning import CLIENT_LOOKS, WORKER_LOOKS, Pollers


class Ring:
    """A ring whose worker sleeps when the test says so."""

    def __init__(self) -> None:
        self.parked = False
        self.asked = 0
        self.looks = (0, 0)

    def is_parked(self) -> bool:
        self.asked += 1
        return self.parked

    def set_spin(self, looks: int) -> None:
        self.looks = (looks, self.looks[1])

    def set_patience(self, looks: int) -> None:
        self.looks = (self.looks[0], looks)


POLLS, SLEEPS = (WORKER_LOOKS, CLIENT_LOOKS), (0, 0)


def test_one_worker_and_its_client_poll_on_two_processors() -> None:
    pollers, ring = Pollers(2), Ring()
    for _ in range(3):
        assert pollers.woke(ring, closely=True)
        assert ring.looks == POLLS


def test_nobody_polls_for_a_call_that_was_not_close_to_the_last() -> None:
    pollers, ring = Pollers(2), Ring()
    assert not pollers.woke(ring, closely=False)
    assert pollers.woke(ring, closely=True)
    assert not pollers.woke(ring, closely=False)
    assert ring.looks == SLEEPS


def test_who_was_woken_for_a_single_call_does_not_count() -> None:
    pollers, first, second = Pollers(2), Ring(), Ring()
    pollers.woke(first, closely=True)
    pollers.woke(first, closely=False)
    assert pollers.woke(second, closely=True)


def test_nobody_polls_on_one_processor() -> None:
    pollers, ring = Pollers(1), Ring()
    assert not pollers.woke(ring, closely=True)
    assert ring.looks == SLEEPS


def test_nobody_polls_once_one_more_is_awake_than_there_are_processors() -> None:
    pollers, rings = Pollers(3), [Ring() for _ in range(3)]
    assert [pollers.woke(ring, closely=True) for ring in rings] == [True, True, False]
    assert [ring.looks for ring in rings] == [SLEEPS] * 3


def test_who_sleeps_does_not_count() -> None:
    pollers, first, second = Pollers(2), Ring(), Ring()
    pollers.woke(first, closely=True)
    first.parked = True
    assert pollers.woke(second, closely=True)
    assert second.looks == POLLS


def test_where_nobody_polled_the_next_one_polls_when_the_others_sleep() -> None:
    pollers, rings = Pollers(2), [Ring() for _ in range(2)]
    assert [pollers.woke(ring, closely=True) for ring in rings] == [True, False]
    rings[0].parked = True
    assert pollers.woke(rings[1], closely=True)


def test_who_is_gone_does_not_count() -> None:
    pollers, first, second = Pollers(2), Ring(), Ring()
    pollers.woke(first, closely=True)
    pollers.forget(first)
    assert pollers.woke(second, closely=True)
    assert first.asked == 0


def test_no_more_workers_are_asked_than_matter() -> None:
    pollers, rings = Pollers(4), [Ring() for _ in range(100)]
    for ring in rings:
        pollers.woke(ring, closely=True)
    asked = sum(ring.asked for ring in rings)
    pollers.woke(rings[0], closely=True)
    assert sum(ring.asked for ring in rings) <= asked + 4
