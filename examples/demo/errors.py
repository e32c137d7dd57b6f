"""Why a demo ends before its end."""

from timestore_pipeline.errors import TimestoreError


class DemoError(TimestoreError):
    """The demo cannot go on; the message says why, for the person who started it."""


class Interrupted(BaseException):
    """The demo was asked to stop, by Ctrl-C or a signal. Not an Exception, so that nothing takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by signal {number}")
