"""The errors that the command line shows in one line."""


class UserError(Exception):
    """Something that the user can put right; the message says how."""


class UsageError(UserError):
    """A command line that cannot be read."""
