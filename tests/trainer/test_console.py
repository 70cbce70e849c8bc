"""Whatever happens to the console, a program does its work: training, packing and predicting write complete files."""

import json
import os
import signal
import time

import pytest

from models.weights.files import load
from tests.programs import Fork, run_forked
from trainer.runtime.signals import Interrupt, handled

# What happens to standard output (file descriptor 1) and standard error (2) before the program starts.
CONSOLES = {
    "its reader has gone": "r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.dup2(w, 2)",
    "its disk is full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "it is closed": "os.close(0); os.close(1); os.close(2); sys.stdout = sys.stderr = sys.__stdout__ = None",
    "it accepts only ASCII": "[each.reconfigure(encoding='ascii') for each in (sys.stdout, sys.stderr)]",
}


def run_on(console: str, environment, module: str, *words: object):
    code = f"import os, runpy, sys; {CONSOLES[console]}; runpy.run_module({module!r}, run_name='__main__')"
    return run_forked("-c", code, *words, environment=environment)


@pytest.mark.parametrize(
    "console",
    [pytest.param(name, marks=[] if number < 2 else pytest.mark.soak) for number, name in enumerate(CONSOLES)],
)
def test_a_run_goes_on_whatever_happens_to_its_console(tiny, environment, tmp_path, console):
    work_dir = tmp_path / "跑步"
    done = run_on(console, environment, "trainer", *tiny, "--set", "optim.num_epochs=1", "--work-dir", work_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load(work_dir / "latest.pth")["cursor"]["epoch"] == 1
    log = (work_dir / "train.log").read_text(encoding="utf-8").splitlines()
    assert "Epoch(val) [1]" in "".join(log)
    assert "pictures: " in log[-1]
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["train", "train", "train", "val"]
    assert ("what was printed is incomplete" in done.stderr) == (console == "its disk is full")


@pytest.mark.parametrize("console", ["its reader has gone", "its disk is full"])
def test_json_that_is_cut_off_is_told_by_the_exit_code(environment, console):
    done = run_on(console, environment, "trainer", "config", "--exp", "demo", "--json")
    assert done.returncode == (2 if console == "its disk is full" else 0)
    assert "Traceback" not in done.stderr


def test_a_second_hangup_does_not_end_the_run_before_its_snapshot():
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with Interrupt() as interrupt:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.received == signal.SIGHUP
            assert interrupt.exit_code == 129
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup starts a program in this state
        assert signal.SIGHUP not in handled()
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.received is None
    finally:
        signal.signal(signal.SIGHUP, former)


STEPPING = """
import pathlib, sys, time
import torch
from trainer.runtime.ranks import Ranks
from trainer.runtime.watchdog import Watchdog
with Watchdog(pathlib.Path(sys.argv[1]), Ranks(0, 0, 1, torch.device("cpu")), 0.5) as watchdog:
    watchdog.beat()
    print("started", flush=True)
    for _ in range(10 if sys.argv[2] == "healthy" else 1):
        time.sleep(0.1)
        watchdog.beat()
    time.sleep(0 if sys.argv[2] == "healthy" else 60)
"""


@pytest.mark.parametrize(("state", "code"), [("healthy", 0), ("stalled", 75)])
def test_a_run_that_was_suspended_has_not_stalled(environment, tmp_path, state, code):
    """The suspension itself does not end the run. If the run then stalls, the watchdog notices it."""
    with Fork(("-c", STEPPING, tmp_path, state), environment) as process:
        while "started" not in process.stdout:
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == code, process.stderr
