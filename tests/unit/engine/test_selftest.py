from __future__ import annotations

import pytest
import wasmtime

from shmwasm.engine.config import SETTINGS
from shmwasm.engine.selftest import check_mapping
from shmwasm.errors import UnsupportedError


def test_installed_wasmtime_passes(engine):
    check_mapping(engine)
    check_mapping(engine)


def _engine_with(**settings: object) -> wasmtime.Engine:
    config = wasmtime.Config()
    for name, value in {**SETTINGS, **settings}.items():
        setattr(config, name, value)
    return wasmtime.Engine(config)


def test_engine_that_reserves_less_is_refused_before_anything_is_overwritten():
    with pytest.raises(UnsupportedError, match="4 GiB are reserved"):
        check_mapping(_engine_with(memory_reservation=1 << 20, memory_may_move=True))


def test_engine_that_cannot_run_the_module_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match="a module runs"):
        check_mapping(_engine_with(wasm_threads=False, shared_memory=False))


def test_engine_that_checks_bounds_itself_is_refused():
    """Bounds checks in place of signals would refuse every address of the window."""
    with pytest.raises(UnsupportedError, match="does not hold that"):
        check_mapping(_engine_with(signals_based_traps=False))
