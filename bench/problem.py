"""What ends a bench early, in the form that every error of this project has."""


class Problem(Exception):
    """A measurement that could not be made."""

    def __init__(self, expected: str, found: str, fix: str = "mend that, then: make bench") -> None:
        """Takes the three lines of the message."""
        super().__init__(f"expected: {expected}\nfound:    {found}\nnext:     {fix}")
