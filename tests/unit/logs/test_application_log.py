"""The application log: its lines, and that it leaves the rest of the program alone."""

import json
import logging
import re
import sys
import time

import pytest

from gw.logs.application_log import LEVELS, TRACE, configure
from gw.logs.log_files import LogFileError

AT = 1_785_320_430.1234  # 2026-07-29T10:20:30.123Z

log = logging.getLogger("gw.test")


@pytest.fixture
def zone(monkeypatch):
    def choose(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield choose
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gw.log"


def lines_of(path, write, **settings) -> list[str]:
    """Return what *write* leaves in the file."""
    application_log = configure(file=str(path), max_files=1, console=False, **settings)
    try:
        write()
    finally:
        application_log.close()
    return path.read_text().splitlines()


def handle(message: str, level: int = logging.INFO, name: str = "gw.test") -> None:
    """Log at a known time."""
    record = logging.makeLogRecord({"name": name, "levelno": level, "msg": message, "created": AT})
    logging.getLogger(name).handle(record)


def fail() -> None:
    try:
        raise ValueError("first\nsecond \x1b[31m")  # noqa: TRY301 - the shortest traceback there is
    except ValueError:
        log.exception("it failed")


# --- lines ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stamp"),
    [
        ("UTC", "2026-07-29 10:20:30.123+00:00"),
        ("Europe/Helsinki", "2026-07-29 13:20:30.123+03:00"),
        ("America/St_Johns", "2026-07-29 07:50:30.123-02:30"),
    ],
)
def test_a_text_line_has_local_time_with_its_zone(zone, path, name, stamp):
    zone(name)
    assert lines_of(path, lambda: handle("hello")) == [f"[{stamp}] [gw.test] [info] hello"]


def test_a_json_line_has_the_time_in_utc(zone, path):
    zone("Europe/Helsinki")
    (line,) = lines_of(path, lambda: handle('say "hello"\x7f\n'), format="json")
    assert json.loads(line) == {
        "time": "2026-07-29T10:20:30.123Z",
        "level": "info",
        "logger": "gw.test",
        "message": 'say "hello"\x7f\n',
    }
    assert line.isprintable()


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_lets_itself_and_all_above_through(path, level):
    def write():
        for word, number in LEVELS.items():
            log.log(number, word)

    words = [re.fullmatch(r"\[.*\] \[gw\.test\] \[(.*)\] (.*)", line) for line in lines_of(path, write, level=level)]
    assert [(match[1], match[2]) for match in words] == [
        (word, word) for word, number in LEVELS.items() if number >= LEVELS[level]
    ]


def test_the_names_of_levels_stay_what_they_were_for_the_program_around_us(path):
    lines_of(path, lambda: log.log(TRACE, "x"), level="trace")
    assert logging.getLevelName(TRACE) == "Level 5"
    assert logging.getLevelName(logging.WARNING) == "WARNING"


def test_a_level_of_somebody_elses_keeps_its_name(path):
    (line,) = lines_of(path, lambda: log.log(25, "x"))
    assert line.endswith("[gw.test] [level 25] x")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a\nb\r\n[2026-01-01 00:00:00.000+00:00] [gw] [error] forged", r"a\nb\r\n[2026-01-01 00:00:00.000+00:00]"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b2J c1", r"\x9b2J c1"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}txt.exe", r"\u202etxt.exe"),
        ("line\N{LINE SEPARATOR}separator", r"line\u2028separator"),
        ("lone \udc80 surrogate", r"lone \udc80 surrogate"),
        ("\N{SNOWMAN} é", "\N{SNOWMAN} é"),
    ],
)
def test_nothing_in_a_message_ends_its_line_or_steers_a_terminal(path, message, shown):
    (line,) = lines_of(path, lambda: log.info("%s", message))
    assert f"[info] {shown}" in line
    assert line.isprintable()


def test_a_traceback_stays_with_its_text_line_indented(path):
    first, *rest = lines_of(path, fail)
    assert first.endswith("[gw.test] [error] it failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: first", r"    second \x1b[31m"]
    assert all(line.startswith("    ") for line in rest)


def test_a_traceback_is_a_member_of_its_json_line(path):
    (line,) = lines_of(path, fail, format="json")
    assert json.loads(line)["traceback"].endswith("ValueError: first\nsecond \x1b[31m")
    assert "traceback" not in json.loads(lines_of(path, lambda: log.info("x"), format="json")[-1])


def test_a_stack_is_shown_as_a_traceback_is(path):
    first, *rest = lines_of(path, lambda: log.info("here", stack_info=True))
    assert first.endswith("here")
    assert rest[0] == "    Stack (most recent call last):"


def test_a_message_that_does_not_format_hurts_nobody(path, monkeypatch, capsys):
    monkeypatch.setattr(logging, "raiseExceptions", True)

    def write():
        log.info("%d", "not a number")
        log.info("fine")

    (line,) = lines_of(path, write)
    assert line.endswith("fine")
    assert "Logging error" in capsys.readouterr().err


# --- set-up ----------------------------------------------------------------------


@pytest.fixture
def program_log():
    """The log of a program around gw: a handler at the root."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    root, handler = logging.getLogger(), Handler()
    root.addHandler(handler)
    yield seen
    root.removeHandler(handler)


def test_the_root_logger_is_left_alone_and_sees_nothing_of_ours(path, program_log):
    before = list(logging.getLogger().handlers)
    application_log = configure(file=str(path), max_files=1, console=False)
    assert logging.getLogger().handlers == before
    log.info("ours")
    logging.getLogger("other").error("theirs")
    application_log.close()
    assert program_log == ["theirs"]
    assert "theirs" not in path.read_text()


def test_close_undoes_everything_and_may_be_called_again(path, program_log):
    gw = logging.getLogger("gw")
    before = (gw.level, gw.propagate, list(gw.handlers))
    application_log = configure("error", file=str(path), console=True)
    assert (gw.level, gw.propagate, len(gw.handlers)) == (logging.ERROR, False, 2)
    application_log.close()
    assert (gw.level, gw.propagate, list(gw.handlers)) == before
    application_log.close()
    log.warning("theirs again")
    assert program_log == ["theirs again"]


def test_settings_change_without_losing_a_line(tmp_path):
    application_log = configure(file=str(tmp_path / "a.log"), max_files=1, console=False)
    log.info("one")
    log.debug("not yet")
    application_log.change("debug", file=str(tmp_path / "b.log"), max_files=1, format="json", console=False)
    log.debug("two")
    application_log.close()
    assert (tmp_path / "a.log").read_text().endswith("] one\n")
    assert json.loads((tmp_path / "b.log").read_text())["message"] == "two"


def test_a_change_that_fails_leaves_all_as_it_was(tmp_path, path):
    (tmp_path / "plain").write_text("")
    application_log = configure(file=str(path), max_files=1, console=False)
    with pytest.raises(LogFileError):
        application_log.change("debug", file=str(tmp_path / "plain" / "gw.log"))
    log.debug("too little")
    log.info("still here")
    application_log.close()
    (line,) = path.read_text().splitlines()
    assert line.endswith("still here")


def test_a_refused_file_leaves_the_logger_untouched(tmp_path):
    gw = logging.getLogger("gw")
    before = (gw.level, gw.propagate, list(gw.handlers))
    (tmp_path / "plain").write_text("")
    with pytest.raises(LogFileError):
        configure(file=str(tmp_path / "plain" / "gw.log"))
    assert (gw.level, gw.propagate, list(gw.handlers)) == before


def test_reopening_goes_on_in_a_new_file(tmp_path, path):
    application_log = configure(file=str(path), max_files=1, console=False)
    log.info("one")
    (sink,) = (handler.sink for handler in application_log._handlers)
    assert sink.wait_written(10)
    path.rename(tmp_path / "gw.log.1")
    application_log.reopen()
    log.info("two")
    application_log.close()
    assert "one" in (tmp_path / "gw.log.1").read_text()
    assert path.read_text().endswith("] two\n")


def test_files_are_dated_unless_there_is_one_only(tmp_path):
    application_log = configure(file=str(tmp_path / "gw.log"), max_files=2, console=False)
    log.info("x")
    application_log.close()
    (only,) = tmp_path.iterdir()
    assert re.fullmatch(r"gw-\d{4}-\d\d-\d\d\.log", only.name)


def test_lost_lines_are_told_of_in_the_format_of_the_others(path):
    application_log = configure(file=str(path), max_files=1, console=False, format="json")
    (handler,) = application_log._handlers
    notice = json.loads(handler.sink.notice(3))
    assert (notice["level"], notice["logger"]) == ("warn", "gw.log")
    assert notice["message"] == "3 lines were lost: they came faster than they could be written"
    assert application_log.lost == 0
    application_log.close()


# --- the console -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "no_color", "shown"),
    [(True, "", "[\x1b[33mwarn\x1b[0m]"), (True, "1", "[warn]"), (False, "", "[warn]")],
)
def test_the_console_is_standard_error_coloured_on_a_terminal(monkeypatch, capfd, terminal, no_color, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    application_log = configure(console=True)
    log.warning("careful")
    application_log.close()
    out, err = capfd.readouterr()
    assert (out, shown in err) == ("", True)
    assert err.endswith("careful\n")
