"""Processes that are measured: their CPU and memory are seen, their children too, and none of them survives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from peers import MissingError, Site, find_program, require_libraries, write_config
from processes import Cpus, FailedToRunError, Process, free_port

EVERYWHERE = frozenset(os.sched_getaffinity(0))
LISTENS = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
work = sum(i * i for i in range(2_000_000))
alive = open(sys.argv[2], "w")
if os.fork() == 0:
    kept = bytearray(os.urandom(1)) * (32 << 20)
    print("ready", file=alive, flush=True)
while True:
    listener.accept()[0].close()
"""


def start(tmp_path: Path, script: str, cpus: frozenset[int]) -> Process:
    """Start *script*; it is given its port, and a pipe that ends when nobody is left to write to it."""
    port = free_port()
    os.mkfifo(tmp_path / "alive")
    command = [sys.executable, "-c", script, str(port), str(tmp_path / "alive")]
    return Process("sample", command, port=port, log=tmp_path / "log", cpus=cpus)


def test_the_work_and_the_memory_of_children_are_counted_and_stopping_ends_them(tmp_path: Path):
    process = start(tmp_path, LISTENS, EVERYWHERE)
    try:
        process.wait_until_open()
        with (tmp_path / "alive").open() as alive:
            assert alive.readline() == "ready\n"
            assert len(process.tree()) == 2
            assert process.cpu_seconds() > 0
            assert process.resident() > 32 << 20
            process.stop()
            assert alive.read() == ""  # and not a moment before both are gone
    finally:
        process.stop()
    assert process.child.returncode is not None
    assert process.resident() == 0


def test_a_process_that_exits_at_once_is_reported_with_its_last_words(tmp_path: Path):
    process = start(tmp_path, "import sys; sys.exit('no such port')", EVERYWHERE)
    with pytest.raises(FailedToRunError) as caught:
        process.wait_until_open()
    process.stop()
    assert str(caught.value) == "sample exited with 1: no such port"


def test_a_process_runs_on_the_cpus_it_was_given_and_we_stay_where_we_were(tmp_path: Path):
    before = os.sched_getaffinity(0)
    one = frozenset({min(before)})
    process = start(tmp_path, LISTENS, one)
    try:
        assert os.sched_getaffinity(process.child.pid) == one
        assert os.sched_getaffinity(0) == before
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("available", "proxy", "load"),
    [({3}, {3}, {3}), ({0, 1}, {0}, {1}), ({5, 2, 9}, {2}, {5, 9})],
)
def test_the_proxy_has_a_cpu_to_itself_where_there_are_two(available: set[int], proxy: set[int], load: set[int]):
    assert Cpus.divide(available) == Cpus(frozenset(proxy), frozenset(load))


def test_a_missing_program_or_library_is_named_with_what_to_install():
    with pytest.raises(MissingError) as caught:
        find_program("no-such-proxy", "pip install it")
    assert str(caught.value) == "no-such-proxy is not installed: pip install it"
    with pytest.raises(MissingError) as caught:
        require_libraries("json", "no_such_library")
    assert str(caught.value) == "no_such_library is not installed: pip install 'gw[fast]'"


@pytest.mark.parametrize("template", ["gw.yaml", "nginx.conf", "origin.conf", "envoy.yaml"])
def test_nothing_is_left_open_in_a_template(tmp_path: Path, template: str):
    site = Site(tmp_path, Cpus.divide({0}), origin=81)
    empty = dict.fromkeys(("USER", "PROTOCOL", "MORE", "FILTERS", "MANAGER", "CHAIN", "CLUSTER"), "")
    path = write_config(site, template, "filled", PORT=80, ENGINE="native", PLUGINS="null", **empty)
    lines = [line.partition("# ")[0] for line in Path(path).read_text().splitlines()]
    assert not [line for line in lines if "@" in line and "@type" not in line]
