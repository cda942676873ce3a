"""The pid file: whose it is, who holds it, and what is left of it (behaviour 2.3)."""

import fcntl
import os

import pytest

from gw.ops.pid_file import AlreadyRunning, PidFile, PidFileError, running


def test_whoever_takes_it_is_running_until_he_lets_go(tmp_path):
    path = tmp_path / "gw.pid"
    assert running(path) is None
    held = PidFile.take(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert running(path) == os.getpid()
    held.release()
    held.release()
    assert running(path) is None
    assert not path.exists()


def test_a_second_one_is_told_who_holds_it(tmp_path):
    path = tmp_path / "gw.pid"
    held = PidFile.take(path)
    with pytest.raises(AlreadyRunning, match=rf"running already as pid {os.getpid()} \(pid file {path}\); stop it, or"):
        PidFile.take(path)
    held.release()


def test_a_file_without_a_lock_means_nothing_and_is_used_again(tmp_path):
    path = tmp_path / "gw.pid"
    path.write_text("1234567890 and some more")
    assert running(path) is None
    assert path.exists()
    held = PidFile.take(path)
    assert path.read_text() == f"{os.getpid()}\n"
    held.release()


def test_a_lock_without_a_pid_is_somebody_who_just_starts(tmp_path):
    path = tmp_path / "gw.pid"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PidFileError, match="is locked, but has no pid in it yet; try again"):
            running(path)
        with pytest.raises(AlreadyRunning, match="running already and is just starting"):
            PidFile.take(path)


def test_those_who_only_ask_are_not_in_the_way_of_one_who_starts(tmp_path, monkeypatch):
    path, real = tmp_path / "gw.pid", fcntl.flock
    path.touch()
    asking = [path.open()]
    fcntl.flock(asking[0], fcntl.LOCK_SH)

    def flock(descriptor, how):
        try:
            real(descriptor, how)
        finally:
            if asking and how & fcntl.LOCK_SH:
                asking.pop().close()

    monkeypatch.setattr(fcntl, "flock", flock)
    held = PidFile.take(path)
    assert not asking
    assert running(path) == os.getpid()
    held.release()


def test_one_who_never_stops_asking_is_not_waited_for_for_ever(tmp_path):
    path = tmp_path / "gw.pid"
    path.touch()
    with path.open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        with pytest.raises(AlreadyRunning):
            PidFile.take(path)
    PidFile.take(path).release()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(PidFileError, match="it is a symbolic link"):
        PidFile.take(tmp_path / "link")
    assert not (tmp_path / "target").exists()


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PidFileError, match="is not a regular file of this user"):
        PidFile.take(tmp_path / "pipe")
    with pytest.raises(PidFileError, match="there is no such directory"):
        PidFile.take(tmp_path / "nowhere" / "gw.pid")


def test_a_file_that_another_process_goes_on_with_stays(tmp_path):
    path = tmp_path / "gw.pid"
    held = PidFile.take(path)
    inherited = os.dup(held.descriptor)
    held.is_ours = False
    held.release()
    assert running(path) == os.getpid(), "the lock is that of every descriptor of it"
    PidFile(path, inherited).release()
    assert not path.exists()


def test_a_file_that_somebody_put_in_its_place_is_left_alone(tmp_path):
    path = tmp_path / "gw.pid"
    held = PidFile.take(path)
    path.unlink()
    path.write_text("another's")
    held.release()
    assert path.read_text() == "another's"
