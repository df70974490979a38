"""The two ways a run ends badly. The command prints the message alone and exits with the code."""


class UndiffuseError(Exception):
    """Something failed (exit code 1). The message says what, where and what to do, in one or two lines."""

    exit_code = 1


class UsageError(UndiffuseError, ValueError):
    """The user asked for something that cannot be (exit code 2): a wrong name, value or combination."""

    exit_code = 2
