"""The launcher's modules."""

import pytest

from shmwasm import errors
from shmwasm.engine.compiling import compile_module
from shmwasm.engine.config import new_engine
from shmwasm.launcher.modules import CAPACITY, ModuleCache

NO_DESCRIPTOR = -1


@pytest.fixture(scope="module")
def engine():
    return new_engine(parallel_compilation=False)


@pytest.fixture
def cache(engine):
    made = ModuleCache(engine)
    yield made
    made.close()


@pytest.fixture
def compiled(engine):
    with compile_module('(module (func (export "f") (result i32) (i32.const 1)))', engine=engine) as made:
        yield made


def test_a_known_key_needs_no_artifact(cache, compiled):
    first = cache.load("a", compiled.descriptor, compiled.descriptor)
    assert "f" in first.description.exports
    assert cache.load("a", NO_DESCRIPTOR, NO_DESCRIPTOR) is first


def test_the_module_that_was_not_used_for_longest_goes_first(cache, compiled):
    keys = [str(number) for number in range(CAPACITY)]
    loaded = {key: cache.load(key, compiled.descriptor, compiled.descriptor) for key in keys}
    assert cache.load(keys[0], NO_DESCRIPTOR, NO_DESCRIPTOR) is loaded[keys[0]]
    cache.load("one more", compiled.descriptor, compiled.descriptor)
    assert cache.load(keys[0], NO_DESCRIPTOR, NO_DESCRIPTOR) is loaded[keys[0]]
    with pytest.raises(errors.ModuleError):
        cache.load(keys[1], NO_DESCRIPTOR, NO_DESCRIPTOR)


def test_an_artifact_that_is_no_code_is_refused_and_not_kept(cache, compiled):
    for artifacts in ((NO_DESCRIPTOR, compiled.descriptor), (compiled.descriptor, NO_DESCRIPTOR)):
        with pytest.raises(errors.ModuleError):
            cache.load("a", *artifacts)
    assert cache.load("a", compiled.descriptor, compiled.descriptor) is not None
