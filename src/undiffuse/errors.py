"""The package's errors. The command line prints only the message and exits with the code."""


class UndiffuseError(Exception):
    """Something failed (exit code 1). The message says what, where and what to do, in one or two lines."""

    exit_code = 1


class UsageError(UndiffuseError, ValueError):
    """The user made an invalid request (exit code 2): a wrong name, value or combination."""

    exit_code = 2
