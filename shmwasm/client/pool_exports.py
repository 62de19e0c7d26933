"""The exported functions of a pool: what a call of one is checked for before an instance is chosen.

Theory
------
All instances of a pool are alike, so a call that none of them could be given is refused where it is submitted. There, too, an
argument's own code runs, in the thread of whoever passes it: an instance is given nothing but numbers. Only where a block lies is
found out when an instance is chosen, which must see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from shmwasm import errors
from shmwasm.client import checks
from shmwasm.client.arguments import Value, converters
from shmwasm.client.blocks import Block
from shmwasm.client.exports import check_name, not_metered
from shmwasm.client.modules import Module
from shmwasm.client.side_channel import Number
from shmwasm.core.dispatching import cells_of

POOL: Final = 0
"""What stands for the number of an instance in the errors of calls that no instance was given."""


class Request(NamedTuple):
    """One call, which every instance that is like the others can be given.

    Attributes:
        export: The function's name.
        arguments: Its arguments, which are numbers or blocks.
        numbers: The same, in the ranges of their types, integers unsigned; None if there are blocks among them.
        timeout: Seconds that it may run; 0 for no limit.
        fuel: Units of fuel that it may use; None for the instance's usual amount.
    """

    export: str
    arguments: Sequence[Value]
    numbers: Sequence[Number] | None
    timeout: float
    fuel: int | None


class PoolExport:
    """An exported function of a pool's module.

    Args:
        module: The module.
        name: The function's name.
        address_of: Returns the address at which an instance of the pool sees a block, or raises.

    Attributes:
        kind: The function's type.
        cells: How many values pass in one direction at most, its fuel included.

    Raises:
        ArgumentError: That is no name.
        UnknownExportError: There is no such function.
        UnsupportedError: It takes or returns something that is not a number.
    """

    def __init__(self, module: Module, name: str, address_of: Callable[[Block], int]) -> None:
        check_name(name, module, POOL)
        self.name = name
        self.kind = module.exports[name]
        self.cells = cells_of({name: module.signatures[name]})
        self._metered = module.metered
        self._convert = converters(name, self.kind, address_of)

    def request(self, arguments: tuple[Value, ...], timeout: float | None, fuel: int | None) -> Request:
        """Return a call of the function.

        Raises:
            ArgumentError: The arguments do not fit the function's type, or a limit cannot be.
            UnsupportedError: There is an amount of fuel, and the module is not metered.
        """
        numbers = self._convert(arguments)
        limit, fuel = checks.time_limit(timeout), self.amount_of_fuel(fuel)
        if not any(isinstance(argument, Block) for argument in arguments):
            return Request(self.name, numbers, numbers, limit, fuel)
        given = [one if isinstance(one, Block) else number for one, number in zip(arguments, numbers, strict=True)]
        return Request(self.name, given, None, limit, fuel)

    def amount_of_fuel(self, fuel: int | None) -> int | None:
        """Return a limit of fuel, which may be None for the usual one.

        Raises:
            ArgumentError: It cannot be.
            UnsupportedError: There is one, and the module is not metered.
        """
        if fuel is None:
            return None
        if not self._metered:
            raise not_metered(self.name)
        return checks.amount_of_fuel(fuel)

    def check_columns(self, count: int) -> None:
        """Raise unless calls can be made of so many columns of arguments; of none, there are no calls.

        Raises:
            ArgumentError: They are not as many as the function has parameters.
        """
        parameters = self.kind.parameters
        if count and count != len(parameters):
            raise errors.ArgumentError(
                f"{self.name!r} takes {len(parameters)} arguments ({', '.join(parameters)}), not {count}, as map was given"
            )
