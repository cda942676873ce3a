"""What `gw serve` sets for its process, in a process of its own: the settings outlive a test."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gw.ops import memory

FAULTS = """
import resource
from gw.ops.memory import keep_heap
keep = {keep}
if keep and not keep_heap():
    raise SystemExit(3)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def bodies():
    for _ in range(100):
        held = [bytes(100 << 10) for _ in range(20)]
        del held
bodies(); before = faults(); bodies(); print(faults() - before)
"""


def page_faults(keep: bool) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=False)
    if run.returncode == 3:
        pytest.skip("this C library has no mallopt")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_bodies_are_not_paid_for_in_page_faults():
    assert page_faults(keep=True) < 2000  # less than one a body; a body has 25 pages


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _name: object())
    assert memory.keep_heap() is False


def test_what_was_there_before_is_not_looked_at_again():
    code = (
        "import gc; from gw.ops.memory import settle; from gw.limits import GC_THRESHOLD; settle(); "
        "assert gc.get_freeze_count() > 1000; assert gc.get_threshold() == GC_THRESHOLD"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
