"""The watch over leftovers, watched: each kind of leak fails the test that leaks, and nobody else's test."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = (Path(__file__).parents[2] / "conftest.py").read_text()

PREAMBLE = """
import os, subprocess, sys, threading
from pathlib import Path

ORPHAN = '''
import os, sys
if os.fork() == 0:
    os.setsid()
    sys.stdout.close()
    os.close(1)
    sys.stdin.read()
'''

def wait_for(path):
    deadline = threading.Event()
    for _ in range(3000):
        if path.exists():
            return
        deadline.wait(0.01)
    raise TimeoutError(path)
"""
"""For the tests inside of the tests. Children read a pipe that ends with the process that left them behind."""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST + "\nfrom shmwasm.testing import leaks\nleaks.PATIENCE = 0.1\n")
    return pytester


def test_a_test_that_leaves_something_behind_fails_and_its_neighbours_do_not(suite: pytest.Pytester, tmp_path: Path) -> None:
    segment = Path("/dev/shm", tmp_path.name + "-" + tmp_path.parent.name)
    suite.makepyfile(
        PREAMBLE
        + f"""
kept = []

def test_before():
    pass

def test_child():
    kept.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True))

def test_between():
    pass

def test_child_that_was_not_reaped():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    kept.append(child)

def test_grandchild_whose_parent_is_gone():
    ours, theirs = os.pipe()
    kept.append((ours, theirs))
    subprocess.run([sys.executable, "-c", ORPHAN], stdin=ours, stdout=subprocess.DEVNULL, check=True)

def test_descriptor():
    kept.append(open(os.devnull))

def test_thread():
    kept.append(threading.Event())
    threading.Thread(target=kept[-1].wait, daemon=True, name="forgotten").start()

def test_segment():
    Path({str(segment)!r}).touch()

def test_after():
    subprocess.run(["true"], check=True)
    thread = threading.Thread(target=int)
    thread.start()
    with open(os.devnull):
        thread.join()

def test_that_failed_anyway_is_not_blamed_twice():
    left = open(os.devnull)
    kept.append(left)
    raise AssertionError
"""
    )
    try:
        result = suite.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", "-W", "ignore", "-rE")
    finally:
        segment.unlink(missing_ok=True)
    result.assert_outcomes(passed=9, errors=6, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_child *",
            "*process *: cat",
            "*ERROR at teardown of test_child_that_was_not_reaped *",
            "*process *: (not reaped)",
            "*ERROR at teardown of test_grandchild_whose_parent_is_gone *",
            "*process *: *python* -c*",
            "*ERROR at teardown of test_descriptor *",
            "*descriptor of /dev/null",
            "*ERROR at teardown of test_thread *",
            "*thread 'forgotten'",
            "*ERROR at teardown of test_segment *",
            f"*{segment}",
        ]
    )


def test_what_goes_away_by_itself_is_waited_for(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST)
    suite.makepyfile(
        PREAMBLE
        + """
def test_orphan_that_is_told_to_end_in_a_moment():
    ours, theirs = os.pipe()
    subprocess.run([sys.executable, "-c", ORPHAN], stdin=ours, stdout=subprocess.DEVNULL, check=True)
    os.close(ours)
    threading.Timer(0.2, os.close, [theirs]).start()
"""
    )
    suite.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_fixture_of_a_module_that_leaves_something_behind_fails_the_session(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        PREAMBLE
        + """
import pytest

kept = []

@pytest.fixture(scope="module")
def careless():
    kept.append(open(os.devnull))

def test_with_it(careless):
    pass
"""
    )
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["the tests' shared fixtures left behind:", "*descriptor of /dev/null"])


def test_no_worker_of_xdist_is_blamed_for_another(suite: pytest.Pytester, tmp_path: Path) -> None:
    suite.makepyfile(
        test_owner=PREAMBLE
        + f"""
from multiprocessing.shared_memory import SharedMemory

HERE = Path({str(tmp_path)!r})

def test_holds_a_segment_and_a_process_for_a_while():
    wait_for(HERE / "watching")
    segment = SharedMemory(create=True, size=1)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        (HERE / "holding").touch()
        wait_for(HERE / "looked")
    segment.close()
    segment.unlink()
""",
        test_neighbour=PREAMBLE
        + f"""
HERE = Path({str(tmp_path)!r})

def test_is_over_while_they_are_there():
    (HERE / "watching").touch()
    wait_for(HERE / "holding")

def test_comes_next():
    (HERE / "looked").touch()
""",
    )
    result = suite.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile")
    result.assert_outcomes(passed=3)
