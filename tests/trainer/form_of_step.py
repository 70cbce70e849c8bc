"""Replaces trainer/runtime/tuning/trial.py in tests: gives the same kinds of answers, but computes nothing.

The experiment's `prefetch` chooses the behaviour of this program from FORMS. The behaviours `hangs`, `crashes` and
`killed` are real, and not simulated.
"""

import json
import os
import signal
import sys
import time

FORMS = {name: f"prefetch={number}" for number, name in enumerate(
    ("default", "slower", "faster", "fastest", "wrong", "nan", "wrong gradients", "raises", "no memory", "killed",
     "crashes", "hangs", "hangs in a turn", "as fast"), 2
)}  # fmt: skip
# The seconds that a step of each of these forms takes. A step of any other form takes 0.01 s.
SECONDS = {"slower": 0.02, "faster": 0.008, "fastest": 0.004}


def main() -> None:
    settings = json.loads(sys.stdin.readline())["settings"]
    form = {change: name for name, change in FORMS.items()}[f"prefetch={settings['prefetch']}"]
    losses, norms = [2.0, 1.9, 1.8], [5.0, 4.0, 3.0]
    if form in ("wrong", "nan"):
        losses[2] = 1.81 if form == "wrong" else float("nan")
    if form == "wrong gradients":
        norms[1] = 2.0
    if form == "raises":
        tell({"failed": "ValueError: no such kernel", "no_memory": False})
    if form == "no memory":
        tell({"failed": "OutOfMemoryError: CUDA out of memory", "no_memory": True})
    if form == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if form == "crashes":
        sys.exit("Segmentation fault somewhere")
    if form == "hangs":
        time.sleep(1000)
    tell({"loss": losses, "grad_norm": norms, "threads": 2, "interop_threads": 2, "precision": "fp32"})
    tell({"seconds": 0.01, "gb": 0.5})
    for number, _ in enumerate(sys.stdin):
        if form == "hangs in a turn" and number == 2:
            time.sleep(1000)
        tell({"seconds": SECONDS.get(form, 0.01) * (1 + 0.001 * (number % 3))})


def tell(answer: dict) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
