"""The process keeps the memory of freed activations, so later steps need no new pages from the operating system."""

import pytest

from tests.programs import run

SCRIPT = """
import ctypes, resource, sys, torch
from trainer.runtime.allocator import keep_freed_memory
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit(77)
if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        kept = [torch.ones(20_000_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
faults()
print(faults())
"""


@pytest.mark.soak
def test_a_second_step_takes_no_new_pages():
    def faults(mode):
        done = run("-c", SCRIPT, mode)
        if done.returncode == 77:
            pytest.skip("this C library has no mallopt")
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert faults("kept") < 1000
    assert faults("plain") > 10_000  # if there are few page faults without the setting, the setting is no longer needed
