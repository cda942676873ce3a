"""Which engine is chosen, and what is said when it is not there."""

import importlib.util
import subprocess
import sys

import pytest

from gw.http import engines
from gw.http.engines import EngineMissing, choose


@pytest.fixture
def without_httptools(monkeypatch):
    def find_spec(name):
        return None if name == "httptools" else importlib.util.find_spec(name)

    monkeypatch.setattr(engines, "find_spec", find_spec)


def test_the_native_engine_is_preferred_and_the_pure_one_always_there():
    assert [choose(engine).name for engine in ("auto", "native", "pure")] == ["llhttp", "llhttp", "h11"]


@pytest.mark.usefixtures("without_httptools")
def test_auto_falls_back_to_the_pure_engine():
    assert choose("auto").name == "h11"


@pytest.mark.usefixtures("without_httptools")
def test_a_missing_native_engine_is_named_with_its_extra():
    with pytest.raises(EngineMissing) as caught:
        choose("native")

    assert str(caught.value) == (
        "engine: native needs httptools, which is not installed; "
        "run pip install 'gw[fast]', or set engine to auto or pure"
    )


@pytest.mark.parametrize(("chosen", "other"), [("pure", "httptools"), ("native", "h11")])
def test_only_the_engine_that_is_chosen_is_imported(chosen, other):
    code = f"import sys; from gw.http.engines import choose; choose({chosen!r}); print({other!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
