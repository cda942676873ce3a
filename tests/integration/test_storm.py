"""Each trial of `storm`, in its quick form."""

import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).with_name("storm.py")


@pytest.mark.parametrize("trial", ["kill", "reload", "upgrade", "stuck", "memory"])
def test_what_an_operator_does_under_load_is_noticed_by_nobody(peer, trial):
    peer("wrk")
    done = subprocess.run(
        [sys.executable, STORM, "--quick", trial],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
