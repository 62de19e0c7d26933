"""Maps of a pool over arrays, lists and generators, judged call by call."""

import itertools

import numpy as np
from chaos import CANCELLED, steps
from pool_loads import FEW_ROUNDS

from shmwasm.errors import ClosedError, FuelExhaustedError
from waiting import PATIENCE

SIZES = (1, 2, 30, 1000, 20_000)
FEWER = (1, 2, 30, 200)
"""Where calls go singly, or each is in an instance of its own."""
FEWEST = (1, 2, 20)
"""Where instances are made all the time."""


class Maps:
    """Maps `note` once, in one of several ways."""

    def __init__(self, pool, judge, desk, take, rng, *, exact):
        self.pool, self.judge, self.desk, self.take, self.rng, self.exact = pool, judge, desk, take, rng, exact

    def run_one(self):
        singly = self.judge.load.options.keys() & {"fresh", "recycle_after", "timeout"}
        rng, options = self.rng, {"timeout": PATIENCE}
        if rng.random() < 0.2:
            singly, options["call_timeout"] = True, PATIENCE
        few = self.judge.load.options.get("recycle_after", FEWEST[-1]) < FEWEST[-1]
        self.count = rng.choice(FEWEST if few else FEWER if singly else SIZES)
        if rng.random() < 0.5:
            options["chunksize"] = rng.choice([1, 7, 500])
        if rng.random() < 0.3:
            options["buffersize"] = rng.choice([1, 10, 2000])
        self._choose_arguments()
        ways = [self._with_errors, self._unordered]
        if not self.exact:
            ways += [self._into_array, self._until_one_fails, self._and_leave]
        rng.choice(ways)(options)

    def _choose_arguments(self):
        rng, count = self.rng, self.count
        numbers = np.random.default_rng(rng.getrandbits(64))
        self.first = self.take(count)
        self.cells = np.arange(self.first, self.first + count, dtype=np.uint32) + np.uint32(self.desk.address(0))
        self.seeds = numbers.integers(-(1 << 63), 1 << 63, count, dtype=np.int64)
        few, many = rng.randrange(FEW_ROUNDS), rng.randrange(FEW_ROUNDS + 1, 20 * FEW_ROUNDS)
        self.steep = numbers.random(count) < rng.choice([0, 0, 1 / count, 0.02])
        self.rounds = np.where(self.steep, many, few).astype(np.int32)
        self.expected = np.where(self.steep, stepped(self.seeds, many), stepped(self.seeds, few))

    def _arguments(self):
        """Return the arguments in one of the forms in which a map takes them."""
        columns = self.cells, self.seeds, self.rounds
        match self.rng.randrange(4):
            case 0:
                return [column.tolist() for column in columns]
            case 1:
                return [(one for one in column.tolist()) for column in columns]
            case 2:
                names = ("cell", "seed", "rounds")
                rows = np.empty(self.count, [(name, column.dtype) for name, column in zip(names, columns, strict=True)])
                for name, column in zip(names, columns, strict=True):
                    rows[name] = column
                return [rows]
            case _:
                return columns

    # ------------------------------------------------------------ ways

    def _with_errors(self, options):
        taken = 0
        try:
            for found in self.pool.map("note", *self._arguments(), return_exceptions=True, **options):
                self._judge(taken, found)
                taken += 1
        except BaseException as error:  # noqa: BLE001  it is judged
            self._ended_early(error)
        else:
            self._check_count(taken, self.count)

    def _unordered(self, options):
        """Results that come as they are there, once each."""
        right = {value: place for place, value in enumerate(self.expected.tolist())}
        found, failed = [], []
        try:
            for one in self.pool.map("note", *self._arguments(), return_exceptions=True, ordered=False, **options):
                (failed if isinstance(one, BaseException) else found).append(one)
        except BaseException as error:  # noqa: BLE001  it is judged
            self._ended_early(error)
            self.judge.miss(len(found) + len(failed))
            return
        for value in found:
            place = right.pop(value, None)
            if place is None:
                self._problem(f"the result {value} came twice, or from nowhere")
            else:
                self._judge(place, value)
        places = sorted(right.values())
        self._check_count(len(failed), len(places))
        steep = [place for place in places if self.judge.load.metered and self.steep[place]]
        exhausted = [error for error in failed if isinstance(error, FuelExhaustedError)]
        # Of those that were killed nobody knows which is which.
        for error in failed:
            runs = int(self._runs().max(initial=0))
            self.judge.judge_error("a map's call", FuelExhaustedError if steep else None, error, runs)
        if len(exhausted) > len(steep):
            self._problem(f"{len(exhausted)} calls had not enough fuel, of {len(steep)}")

    def _into_array(self, options):
        out = np.zeros(self.count, np.int64)
        try:
            filled = self.pool.map("note", *self._arguments(), out=out, **options)
        except BaseException as error:  # noqa: BLE001  it is judged
            self._ended_early(error)
        else:
            self._check_count(len(filled), self.count)
            if (filled != self.expected).any() or (self.judge.load.metered and self.steep.any()):
                self._problem("an array was filled wrongly")
            if (self._runs() != 1).any():
                self._problem("a call whose result is there did not run once")
            self.judge.count("returned", self.count)
            self.judge.tally.note("mapped")

    def _until_one_fails(self, options):
        taken = 0
        try:
            for found in self.pool.map("note", *self._arguments(), **options):
                self._judge(taken, found)
                taken += 1
        except BaseException as error:  # noqa: BLE001  it is judged
            self._ended_early(error, taken, taken)
        else:
            self._check_count(taken, self.count)

    def _and_leave(self, options):
        taken = 0
        try:
            results = self.pool.map("note", *self._arguments(), **options)
            for found in itertools.islice(results, self.rng.randrange(self.count)):
                self._judge(taken, found)
                taken += 1
            results.close()
        except BaseException as error:  # noqa: BLE001  it is judged
            self._ended_early(error, taken, taken)
        else:
            self.judge.miss(self.count - taken)

    # ------------------------------------------------------------ how it ended

    def _judge(self, place, found):
        """Judge what was given for one of the calls."""
        exhausts = self.judge.load.metered and bool(self.steep[place])
        runs = int(self.desk.runs[self.first + place])
        if isinstance(found, BaseException):
            self.judge.judge_error("a map's call", FuelExhaustedError if exhausts else None, found, runs)
            return
        if exhausts or found != self.expected[place] or runs != 1:
            self._problem(f"call {place} of {self.count} returned {found} after {runs} runs, not {self.expected[place]}")
        self.judge.count("returned")

    def _ended_early(self, error, place=None, judged=0):
        """Judge what a map raised, and take note of the calls whose ends nobody saw."""
        self.judge.miss(self.count - judged)
        if isinstance(error, FuelExhaustedError) and self.judge.load.metered and self.steep.any():
            if place is not None and not self.steep[place]:
                self._problem(f"call {place} had not enough fuel")
            self.judge.tally.note("map out of fuel")
        elif isinstance(error, (*CANCELLED, ClosedError)) and self.judge.closing:
            self.judge.tally.note("map closed")
        elif self.judge.tally.was_killed(error) or self.judge.closing:
            self.judge.tally.note("map lost")
        else:
            self.judge.tally.unexpected("a map", error)

    def _runs(self):
        return self.desk.runs[self.first : self.first + self.count]

    def _check_count(self, found, expected):
        if found != expected:
            self._problem(f"a map of {self.count} gave {found} results, not {expected}")
        self.judge.tally.note("mapped")

    def _problem(self, text):
        self.judge.tally.problem(text)


def stepped(seeds, rounds):
    """Return what `note` answers for each seed."""
    factor, increment = (np.uint64(one) for one in steps(rounds))
    with np.errstate(over="ignore"):
        return (seeds.view(np.uint64) * factor + increment).view(np.int64)
