"""The one exception that a user is meant to read."""


class WhaleidError(Exception):
    """One clear line: what is wrong, where (file, row, column, key), and what to do.

    The command line prints it and exits with code 2; anything else is a bug and shows a traceback.
    """
