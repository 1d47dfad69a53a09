"""The one exception that reaches users as a message instead of a traceback."""


class DiptychError(Exception):
    """Something the user can mend.

    The message says what is wrong, where (file, row or key) and what to do about it. The command line prints it to
    stderr and exits with 1; a traceback appears only with ``--debug``.
    """
