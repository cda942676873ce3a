"""A plugin of somebody else: built and installed by pip, found by its entry point, used by the command line."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[1] / "sample_plugin"

CONFIGURATION = """\
plugins: [sunset]
sunset: {information: "https://example.com/changes"}
upstreams:
  - {name: api, host: 127.0.0.1, port: 9000}
routes:
  - name: old
    match: {prefix: /v1}
    upstream: api
    sunset: {deprecated: 2026-01-31, gone: 2027-01-31}
  - {name: new, match: {prefix: /v2}, upstream: api}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the sample."""
    folder = tmp_path_factory.mktemp("site")
    # Where the build backend is at hand, nothing needs to be fetched.
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    quiet = ["--quiet", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *quiet,
        "--no-deps",
        *isolation,
        "--target",
        str(folder),
        str(SAMPLE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(site, tmp_path):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GW_", "REACTOR_"))}

    def run(*arguments, module="gw"):
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env=environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_it_is_listed_with_its_distribution(run):
    listed = json.loads(run("plugins", "--json").stdout)
    assert {"name": "sunset", "module": "gw_sample", "distribution": "gw-sample", "version": "1.2.3"} in listed


def test_its_settings_are_accepted_and_its_filter_stands_on_the_route_that_has_some(run, tmp_path):
    (tmp_path / "gw.yaml").write_text(CONFIGURATION)
    validated = run("validate", "-c", "gw.yaml")
    assert (validated.returncode, validated.stdout, validated.stderr) == (0, "Configuration is valid.\n", "")
    old, new = json.loads(run("routes", "-c", "gw.yaml", "--json").stdout)
    assert [(each["name"], each["plugin"]) for each in old["filters"]] == [("sunset", "sunset")]
    assert new["filters"] == []


def test_what_is_wrong_with_its_settings_is_reported_like_everything_else(run, tmp_path):
    text = CONFIGURATION.replace("gone: 2027", "gone: 2025").replace("information:", "informaton:")
    (tmp_path / "gw.yaml").write_text(text)
    refused = run("validate", "-c", "gw.yaml")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines() == [
        "gw.yaml:2:10: sunset.informaton: is not a known key (did you mean 'information'?)",
        "gw.yaml:9:38: routes[0].sunset.gone: must not be before deprecated (2026-01-31), not 2025-01-31",
    ]


def test_a_configuration_that_does_not_name_it_is_told_to(run, tmp_path):
    (tmp_path / "gw.yaml").write_text(CONFIGURATION.replace("plugins: [sunset]", "plugins: []"))
    refused = run("validate", "-c", "gw.yaml")
    assert refused.stderr.splitlines() == [
        "gw.yaml:2:1: sunset: belongs to plugin 'sunset', which is not loaded; add it to plugins at the top level",
        "gw.yaml:9:5: routes[0].sunset: belongs to plugin 'sunset', which is not loaded; add it to plugins at the top level",
    ]


def test_its_settings_are_in_the_schema(run):
    made = json.loads(run("schema", "--plugins", "sunset").stdout)
    assert made["$defs"]["RouteSettings"]["properties"]["gone"]["description"] == "The day on which it is switched off."


def test_its_own_tests_pass_against_what_was_installed(run):
    done = run("-q", "-p", "no:cacheprovider", str(SAMPLE / "tests"), module="pytest")
    assert done.returncode == 0, done.stdout
