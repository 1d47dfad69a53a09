"""The `diptych` command in this process."""

import pytest

from diptych.cli.main import main


def diptych(*arguments: object) -> int:
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)
