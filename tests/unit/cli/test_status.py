"""The commands for a running gateway, where there is none; tests/integration has one."""

import json

import pytest


@pytest.mark.parametrize("command", [("stop",), ("reload",), ("plan",), ("top", "--once")])
def test_without_a_gateway_there_is_nothing_to_do(gw, command):
    result = gw(*command, "-P", "gw.pid")
    assert result.exit_code == 1
    assert "gw is not running (pid file gw.pid)." in result.output


def test_status_says_so_too(gw):
    result = gw("status", "-P", "gw.pid")
    assert (result.exit_code, result.output) == (1, "gw is not running (pid file gw.pid).\n")
    assert json.loads(gw("status", "--json", "-P", "gw.pid").stdout) == {
        "running": False,
        "pid": None,
        "pid_file": "gw.pid",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("reload", "--confirm-within", "soon"), "'soon' is not a time, such as 60s or 5m"),
        (("reload", "--confirm", "--confirm-within", "5s"), "use one"),
        (("validate", "-P", "x"), "-P means something together with -d only"),
        (("serve", "-w", "-1"), "Invalid value for '-w'"),
    ],
)
def test_a_wrong_call_is_a_usage_error(gw, arguments, says):
    result = gw(*arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_what_a_daemon_needs_is_checked(gw, tmp_path):
    (tmp_path / "gw.yaml").write_text("plugins: []\nlog: {access: {enabled: true}}\n")
    result = gw("validate", "-d", "-c", "gw.yaml", "-P", "gw.pid")
    assert result.exit_code == 1
    assert "gw.yaml:2:1: log.file: must be set for a daemon, which has no terminal to write to" in result.output
    assert "log.access.file: must be set for a daemon, which has no standard output" in result.output
    assert "the pid file must be an absolute path for a daemon, not 'gw.pid'" in result.output
