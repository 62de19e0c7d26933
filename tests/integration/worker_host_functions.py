"""Host functions that workers import by name."""

import sys


def twice(caller, number):
    return 2 * number


def swap(caller, first, second):
    return second, first


def raise_value_error(caller):
    raise ValueError("no good")


def ask_to_exit(caller):
    sys.exit(3)


def return_a_text(caller):
    return "seven"


def number(caller):
    return caller.instance


def write_at(caller, address, value):
    caller.view(address, 4).cast("I")[0] = value


def size_of_memory(caller):
    return len(caller.memory)


kept = []


def keep_caller(caller):
    kept.append(caller)


def use_kept_caller(caller):
    return len(kept[0].memory)
