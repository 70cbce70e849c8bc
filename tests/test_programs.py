"""Processes that tests start end with the tests. A fork of tests/starter.py behaves like a new interpreter."""

import signal
import time

from tests.programs import Fork, is_running, run_forked, start, wait_for_end

CHILDREN = """
import time
from tests import programs
programs.IMPORTED = ()
wait = ("-c", "import time; time.sleep(600)")
children = [programs.start(*wait), programs.Fork(wait), programs.starter().process]
print(*[child.pid for child in children], flush=True)
time.sleep(600)
"""


def test_no_child_outlives_the_tests():
    with start("-c", CHILDREN) as tests:
        assert tests.stdout is not None
        children = [int(pid) for pid in tests.stdout.readline().split()]
        assert len(children) == 3
        assert all(is_running(pid) for pid in children)
        tests.kill()
    wait_for_end(*children)


def test_a_fork_has_the_words_the_environment_and_the_folder_of_a_program(tmp_path):
    code = (
        "import os, sys; print('torch' in sys.modules, sys.argv, __name__, os.environ, os.getcwd()); sys.exit('told')"
    )
    done = run_forked("-c", code, "a", 1, environment={"NAME": "value"}, cwd=tmp_path)
    expected = f"True ['-c', 'a', '1'] __main__ environ({{'OMP_NUM_THREADS': '1', 'NAME': 'value'}}) {tmp_path}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, expected, "told\n")


def test_signals_and_ends_of_forks():
    code = "import signal, time; print(signal.getsignal(signal.SIGINT).__name__, flush=True); time.sleep(600)"
    with Fork(("-c", code)) as first, Fork(("-c", code)) as second:
        while not (first.stdout and second.stdout):
            time.sleep(0.01)
        assert first.stdout == "default_int_handler\n"
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == -signal.SIGINT
        assert "KeyboardInterrupt" in first.stderr
        assert second.poll() is None
    assert second.returncode == -signal.SIGKILL
