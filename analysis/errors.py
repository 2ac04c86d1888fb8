"""The one exception for mistakes that a user can put right."""


class UserError(ValueError):
    """A user's mistake, told in one line: what, where, what is allowed, what to do.

    The command line prints it and exits with code 2.
    """
