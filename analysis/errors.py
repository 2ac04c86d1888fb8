"""The one exception for mistakes that a user can put right, and words of data made fit to be shown."""


class UserError(ValueError):
    """A user's mistake, told in one line: what, where, what is allowed, what to do.

    The command line prints it and exits with code 2.
    """


def printable(text: str) -> str:
    r"""Keep what data say from steering a terminal: blanks for control characters and marks that turn the direction of text.

    >>> printable("a\x1b[2Jb")
    'a [2Jb'
    """
    return "".join(char if char.isprintable() else " " for char in text)
