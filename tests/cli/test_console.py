"""Log records on the terminal."""

import logging
import subprocess
import sys

from diptych.cli.console import ConsoleFormatter, log_to_console


def record(level: int = logging.INFO, exc_info=None, **extra) -> logging.LogRecord:
    made = logging.LogRecord("diptych", level, "file", 1, "epoch %d", (3,), exc_info)
    made.__dict__.update(extra)
    return made


def failure():
    try:
        raise ValueError("deep inside")
    except ValueError:
        return sys.exc_info()


def test_a_message_stands_by_itself():
    assert ConsoleFormatter(debug=False).format(record()) == "epoch 3"


def test_warnings_say_that_they_are():
    assert ConsoleFormatter(debug=False).format(record(logging.WARNING)) == "warning: epoch 3"


def test_in_a_flow_time_and_task_go_before_it():
    text = ConsoleFormatter(debug=False).format(record(task_run_name="train", flow_name="retrain"))

    assert text.endswith("train      | epoch 3")
    assert text[2] == text[5] == ":"


def test_tracebacks_are_for_debugging():
    assert "deep inside" not in ConsoleFormatter(debug=False).format(record(exc_info=failure()))
    assert "deep inside" in ConsoleFormatter(debug=True).format(record(exc_info=failure()))


def test_the_log_goes_to_stderr_and_other_libraries_only_warn(capsys):
    before = logging.getLogger().handlers[:]
    try:
        log_to_console(debug=False)
        logging.getLogger("diptych.data").info("ours")
        logging.getLogger("other").info("theirs")
        captured = capsys.readouterr()
    finally:
        logging.basicConfig(handlers=before, level=logging.WARNING, force=True)

    assert (captured.out, captured.err) == ("", "ours\n")


def test_a_standard_stream_that_is_closed_leads_nowhere_also_in_children(tmp_path):
    child = "import sys; print('a'); print('b', file=sys.stderr); open(sys.argv[1], 'w').write('ran')"
    code = (
        "import subprocess, sys; from diptych.cli.console import open_standard_streams; open_standard_streams(); "
        "print('x'); sys.stdin.read(); print('y', file=sys.stderr); kept = open(sys.argv[1] + '.kept', 'w'); "
        f"subprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]], check=True)"
    )
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, str(tmp_path / "file")]

    assert subprocess.run(closed, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "ran"
    assert (tmp_path / "file.kept").read_text() == ""
