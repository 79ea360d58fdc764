"""The exception of a run that failed, apart from `pipelines.runner` so that the command line can do without Beam."""

from trackstar.errors import TrackStarError


class PipelineError(TrackStarError):
    """A pipeline that started and failed.

    Args:
        message: What went wrong, for people.
        details: Everything known, tracebacks of workers included; shown with --debug.
    """

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details
