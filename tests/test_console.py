"""Log records on the terminal."""

import logging
import sys

from diptych.console import ConsoleFormatter, log_to_console


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
