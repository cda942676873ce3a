import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["--quick", "--engine", "pure", "--loop", "asyncio"], ["--quick", "--loop", "trio"]],
    ids=["native-uvloop", "pure-asyncio", "native-trio"],
)
def test_nothing_is_left_behind_by_requests_of_every_kind(options):
    done = subprocess.run(
        [sys.executable, SOAK, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("nothing was left behind\n")
