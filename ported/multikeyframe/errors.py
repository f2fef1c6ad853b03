"""What can go wrong, by whose fault it is."""


class InputError(ValueError):
    """Wrong input of the user: one line that says what, where and what to do. Exit status 2."""


class GenerationError(RuntimeError):
    """A segment could not be made. Exit status 1; what is finished stays and is used by the next run."""
