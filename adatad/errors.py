"""The error that a user can fix, as opposed to a defect of the program."""


class UserError(Exception):
    """Bad input: the message names the file, key or video, what was expected, and what to do. Commands print it alone
    and leave with exit code 2."""
