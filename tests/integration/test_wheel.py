"""What is published, in an environment of its own: the wheel, with nothing but what it asks for, and a plugin of others."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import to
from started import environment, start_gateway

from gw.testing import PATIENCE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "sample_plugin"


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment(), **more)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(python, *arguments, **more):
    return run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, **more)


def build(source, folder):
    """Return the wheel of *source*. Where the build backend is at hand, nothing is fetched for it."""
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    pip(sys.executable, "wheel", "--no-deps", *isolation, "--wheel-dir", folder, source)
    (wheel,) = folder.glob(f"{'gw_sample' if source == SAMPLE else 'gw'}-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a new environment into which the wheel was installed, without extras."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    pip(folder / "bin" / "python", "install", wheel)
    return folder / "bin" / "python"


def ask(port, path):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, {name for name, _ in answer.getheaders()}, answer.read()


def test_the_wheel_holds_the_program_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "gw",
        *(f"gw_{folder.name}" for folder in (ROOT / "plugins").iterdir() if folder.is_dir()),
    }
    assert "gw/py.typed" in names
    assert not [name for name in names if "test" in Path(name).name and not name.startswith("gw/testing/")]


def test_it_runs_on_the_pure_engine_alone(python):
    said = run(python, "-m", "gw", "version", "-V")
    facts = dict(re.findall(r"(?m)^(\S+) +(.*)$", said))
    assert facts["engine"] == "h11"
    assert facts["loop"] == "asyncio"
    assert facts["uvloop"] == facts["httptools"] == facts["trio"] == "not installed"


def test_the_command_is_on_the_path_and_validates(python, tmp_path):
    (tmp_path / "gw.yaml").write_text((ROOT / "config" / "gateway.yaml").read_text())
    said = run(python.parent / "gw", "validate", "-c", "gw.yaml", cwd=tmp_path)
    assert said == "Configuration is valid.\n"


@pytest.mark.parametrize("setting", [{"engine": "native"}, {"loop": "uvloop"}, {"loop": "trio"}])
def test_what_is_not_installed_is_said_so_when_it_is_asked_for(python, tmp_path, setting):
    started = start_gateway({"bind_port": 0} | setting, folder=tmp_path, python=str(python), may_fail=True)
    assert started.wait() == 1
    assert "not installed" in started.log
    assert "Traceback" not in started.log


def test_it_serves(python, echo, peer, tmp_path):
    arguments = ("--to", f"http://127.0.0.1:{echo.port}", "-p", "0")
    with contextlib.closing(start_gateway(None, *arguments, folder=tmp_path, python=str(python))) as started:
        assert ask(started.port, "/hello")[0] == 200
        url = f"http://127.0.0.1:{started.port}/from/curl"
        assert json.loads(run(peer("curl"), "--silent", "--show-error", "--fail", url))["path"] == "/from/curl"


def test_it_serves_with_a_plugin_of_somebody_else(python, echo, tmp_path):
    pip(python, "install", "--no-deps", build(SAMPLE, tmp_path))
    configuration = to(echo) | {
        "plugins": ["sunset"],
        "routes": [{"match": {"prefix": "/old"}, "upstream": "upstream", "sunset": {"deprecated": "2026-01-31"}}],
    }
    with contextlib.closing(start_gateway(configuration, folder=tmp_path, python=str(python))) as started:
        status, headers, _ = ask(started.port, "/old")
        assert status == 200
        assert "deprecation" in headers
        assert "deprecation" not in ask(started.port, "/new")[1]


def test_the_echo_upstream_is_in_the_wheel(python, tmp_path):
    said = run(python, "-m", "gw.echo", "--help", cwd=tmp_path)
    assert "Say back what is sent" in said
    assert os.fspath(ROOT) not in run(python, "-c", "import gw; print(gw.__file__)", cwd=tmp_path)
