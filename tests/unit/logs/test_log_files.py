"""The writer thread and its files. The disk is real: a pipe that nobody reads is a slow one, /dev/full a full one."""

import logging
import os
import time
from pathlib import Path

import pytest

from gw.logs.log_files import DatedFiles, LineSink, LogFileError, StandardStream

LONG = 10.0  # only ever waited for when a test fails

pytestmark = pytest.mark.usefixtures("_utc")


@pytest.fixture
def _utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def _fill(descriptor: int) -> int:
    """Fill a pipe to the brim; return how much that was."""
    os.set_blocking(descriptor, False)
    size = 0
    try:
        while True:
            size += os.write(descriptor, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(descriptor, True)
        return size


def _take(descriptor: int, size: int) -> bytes:
    out = b""
    while len(out) < size:
        out += os.read(descriptor, size - len(out))
    return out


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- the sink ----------------------------------------------------------------


def test_lines_are_written_in_order_and_close_waits_for_them(tmp_path):
    sink = LineSink(str(tmp_path / "access.log"))
    for number in range(1000):
        sink.write(b"%d\n" % number)
    assert sink.close()
    assert (tmp_path / "access.log").read_text() == "".join(f"{n}\n" for n in range(1000))


def test_lines_are_appended_to_what_is_there_and_the_directory_is_made(tmp_path):
    path = tmp_path / "logs" / "deep" / "access.log"
    for line in (b"one\n", b"two\n"):
        sink = LineSink(str(path))
        sink.write(line)
        assert sink.close()
    assert path.read_text() == "one\ntwo\n"
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_cannot_be_opened_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(LogFileError) as caught:
        LineSink(str(tmp_path / "plain" / "access.log"))
    assert str(caught.value) == (
        f"cannot write the log file {tmp_path}/plain/access.log: File exists; "
        "check the path and the rights on its directory"
    )


def test_a_slow_disk_never_holds_the_caller_up_and_what_is_lost_is_counted_and_said(pipe):
    reading, writing = pipe
    filled = _fill(writing)
    sink = LineSink(descriptor=writing, backlog=100)
    with sink._changed:  # so that the thread sees it all at once
        sink.write(b"a" * 59 + b"\n")
        sink.write(b"b" * 39 + b"\n")
        sink.write(b"lost\n")
        sink.write(b"lost\nlost\n")
    assert sink.lost == 3
    assert repr(sink) == f"<LineSink descriptor {writing}: 100 bytes waiting, 3 lines lost>"
    _take(reading, filled)
    notice = b"3 log lines were lost here: they came faster than they could be written\n"
    assert _take(reading, 100 + len(notice)) == b"a" * 59 + b"\n" + b"b" * 39 + b"\n" + notice
    sink.write(b"well again\n")
    assert sink.close()
    assert _take(reading, 11) == b"well again\n"


def test_a_full_disk_is_reported_once_and_the_log_goes_on_when_it_is_mended(tmp_path, caplog):
    path = tmp_path / "app.log"
    path.symlink_to("/dev/full")
    sink = LineSink(str(path))
    with caplog.at_level(logging.ERROR, "gw.log"):
        for _ in range(3):
            sink.write(b"lost\n")
            assert sink.wait_written(LONG)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write to {path}: No space left on device; until that is mended, lines may be lost"
    ]
    path.unlink()
    sink.write(b"kept\n")
    assert sink.close()
    assert sink.lost == 3
    assert path.read_bytes() == (b"kept\n3 log lines were lost here: they came faster than they could be written\n")


def test_a_line_cut_by_a_failure_does_not_run_into_the_next(tmp_path, monkeypatch):
    path = tmp_path / "app.log"
    sink = LineSink(str(path))
    whole = LineSink._write_some
    cut = iter([3])

    def failing(self, data):
        for size in cut:
            return whole(self, data[:size])
        monkeypatch.setattr(LineSink, "_write_some", whole)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LineSink, "_write_some", failing)
    sink.write(b"first\nsecond\n")
    assert sink.wait_written(LONG)
    sink.notice = lambda lost: b"%d lost\n" % lost
    sink.write(b"third\n")
    assert sink.close()
    assert path.read_bytes() == b"fir\nthird\n2 lost\n"


def test_a_standard_stream_that_does_not_block_gets_everything(pipe):
    reading, writing = pipe
    os.set_blocking(writing, False)
    sink = LineSink(descriptor=writing)
    sink.write(b"y" * 300_000 + b"\n")
    assert _take(reading, 300_001) == b"y" * 300_000 + b"\n"
    assert sink.close()
    os.write(writing, b"open")  # the stream is its owner's to close


def test_close_gives_up_at_its_deadline_and_says_so(pipe):
    reading, writing = pipe
    filled = _fill(writing)
    sink = LineSink(descriptor=writing)
    sink.write(b"late\n")
    assert not sink.close(timeout=0.01)
    assert not sink.wait_written(0.01)
    _take(reading, filled)
    assert sink.close(LONG)
    assert _take(reading, 5) == b"late\n"


def test_what_comes_after_close_is_lost(tmp_path):
    sink = LineSink(str(tmp_path / "a.log"))
    assert sink.close()
    sink.write(b"too late\n")
    assert sink.lost == 1
    assert sink.close()
    assert (tmp_path / "a.log").read_bytes() == b""


# --- one file ----------------------------------------------------------------


@pytest.mark.parametrize("signalled", [True, False])
def test_a_file_that_was_moved_away_is_made_anew(tmp_path, signalled):
    path = tmp_path / "access.log"
    sink = LineSink(str(path))
    sink.write(b"old\n")
    assert sink.wait_written(LONG)
    path.rename(tmp_path / "access.log.1")
    if signalled:
        sink.reopen()
        assert sink.wait_written(LONG)
        assert path.exists()
    sink.write(b"new\n")
    assert sink.close()
    assert (tmp_path / "access.log.1").read_text() == "old\n"
    assert path.read_text() == "new\n"


def test_a_file_that_cannot_be_reopened_leaves_the_old_one_in_use(tmp_path, caplog):
    path = tmp_path / "logs" / "access.log"
    sink = LineSink(str(path))
    (tmp_path / "logs").rename(tmp_path / "moved")
    (tmp_path / "logs").write_text("in the way")
    with caplog.at_level(logging.ERROR, "gw.log"):
        sink.reopen()
        sink.write(b"kept\n")
        assert sink.close()
    assert (tmp_path / "moved" / "access.log").read_text() == "kept\n"
    assert len(caplog.records) == 1


def test_reopening_gives_the_old_descriptor_back(tmp_path):
    sink = LineSink(str(tmp_path / "access.log"))
    before = _open_descriptors()
    for _ in range(5):
        sink.reopen()
        assert sink.wait_written(LONG)
    assert _open_descriptors() == before
    assert sink.close()
    assert _open_descriptors() == before - 1


# --- dated files ---------------------------------------------------------------


class _Disk:
    """A directory of dated files, and the clock that dates them."""

    def __init__(self, directory: Path, max_size: int = 10, max_files: int = 3) -> None:
        self.directory, self.max_size, self.max_files = directory, max_size, max_files
        self.now = 1_767_225_600.0  # 2026-01-01T00:00:00Z

    def place(self) -> DatedFiles:
        return DatedFiles(self.directory / "gw.log", self.max_size, self.max_files, lambda: self.now)

    def write(self, *lines: bytes) -> None:
        place = self.place()
        descriptor = place.open()
        for line in lines:
            if not place.is_current(descriptor):
                place.release(descriptor)
                descriptor = place.open()
            os.write(descriptor, line)
        place.release(descriptor)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


def test_files_are_named_by_day_and_a_new_day_begins_a_new_one(tmp_path):
    disk = _Disk(tmp_path)
    disk.write(b"one\n")
    disk.now += 86_400
    disk.write(b"two\n")
    assert disk.names() == ["gw-2026-01-01.log", "gw-2026-01-02.log"]


def test_midnight_passes_while_a_file_is_open(tmp_path):
    disk = _Disk(tmp_path)
    place = disk.place()
    descriptor = place.open()
    assert place.is_current(descriptor)
    disk.now += 86_400
    assert not place.is_current(descriptor)
    place.release(descriptor)


def test_a_full_file_is_followed_by_the_next_number(tmp_path):
    disk = _Disk(tmp_path)
    disk.write(b"0123456789", b"next", b"still")
    assert disk.names() == ["gw-2026-01-01-1.log", "gw-2026-01-01.log"]
    assert (tmp_path / "gw-2026-01-01-1.log").read_bytes() == b"nextstill"


def test_a_restart_goes_on_with_the_highest_number_of_the_day_if_it_has_room(tmp_path):
    disk = _Disk(tmp_path, max_files=20)
    for number in ("", "-2", "-10"):
        (tmp_path / f"gw-2026-01-01{number}.log").write_bytes(b"x")
    disk.write(b"0123456789")
    assert (tmp_path / "gw-2026-01-01-10.log").read_bytes() == b"x0123456789"
    disk.write(b"new")
    assert (tmp_path / "gw-2026-01-01-11.log").read_bytes() == b"new"


def test_only_the_newest_files_are_kept_and_the_empty_ones_go_first(tmp_path):
    disk = _Disk(tmp_path, max_files=3)
    for day, content in ((27, b"old"), (28, b""), (29, b"newer"), (30, b""), (31, b"newest")):
        (tmp_path / f"gw-2025-12-{day}.log").write_bytes(content)
    disk.write(b"today")
    assert disk.names() == ["gw-2025-12-29.log", "gw-2025-12-31.log", "gw-2026-01-01.log"]


def test_the_file_being_written_is_never_removed_though_it_is_empty(tmp_path):
    disk = _Disk(tmp_path, max_files=2)
    for day in (29, 30, 31):
        (tmp_path / f"gw-2025-12-{day}.log").write_bytes(b"x")
    place = disk.place()
    place.release(place.open())
    assert disk.names() == ["gw-2025-12-31.log", "gw-2026-01-01.log"]


def test_other_files_in_the_directory_are_left_alone(tmp_path):
    others = [
        "gw.log",
        "gw-2025-12-31.log.gz",
        "gw-2025-99-31.log",
        "gw-2025-12-31-01.log",
        "gw-2025-12-31-x.log",
        "other-2025-12-31.log",
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "gw-2025-12-30.log").mkdir()
    (tmp_path / "gw-2025-12-29.log").symlink_to(tmp_path / "gw.log")
    disk = _Disk(tmp_path, max_files=1)
    disk.write(b"x")
    assert disk.names() == sorted([*others, "gw-2025-12-30.log", "gw-2025-12-29.log", "gw-2026-01-01.log"])


def test_a_dated_file_that_vanished_is_made_anew(tmp_path):
    disk = _Disk(tmp_path)
    place = disk.place()
    descriptor = place.open()
    (tmp_path / "gw-2026-01-01.log").unlink()
    assert not place.is_current(descriptor)
    place.release(descriptor)


def test_a_sink_rotates_dated_files_by_size(tmp_path):
    sink = LineSink(str(tmp_path / "gw.log"), max_file_size=10, max_files=2)
    for line in (b"first line\n", b"second line\n", b"third line\n"):
        sink.write(line)
        assert sink.wait_written(LONG)
    assert sink.close()
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns)] == [
        b"second line\n",
        b"third line\n",
    ]


@pytest.mark.parametrize(("descriptor", "name"), [(1, "standard output"), (2, "standard error"), (7, "descriptor 7")])
def test_streams_are_named_for_whoever_reads_the_error(descriptor, name):
    assert str(StandardStream(descriptor)) == name
