"""The tree of errors. Every error that poclib raises on purpose is one of these.

PocError
├── ParameterError, UnlikeProviders, EngineError, StatisticsError, RunFailed
├── ReportError: NewerReport, FolderHeld
└── ProviderError: Unreachable, Forbidden, Rejected, BadAnswer, TimedOut, ModelMissing

A message says what happened, where (file, key, provider), and what to do next.
"""


class PocError(Exception):
    """Something a person can mend: the command line prints it and exits with `exit_code`."""

    exit_code = 3


class ParameterError(PocError):
    """A parameter is missing, misspelled, of the wrong type or out of range."""


class ReportError(PocError):
    """A report is absent, truncated, not a report, or cannot be written."""


class NewerReport(ReportError):
    """A report was written by a newer poclib."""


class FolderHeld(ReportError):
    """Another run holds the folder: two at once would measure each other."""


class ProviderError(PocError):
    """One provider failed; `provider` is its name, never its address.

    `status` is of HTTP; `retry_after_s` is what the server asked for. `temporary`: the same request
    may succeed a moment later; `elsewhere`: another provider may answer it.
    """

    temporary = elsewhere = True

    def __init__(
        self,
        message: str,
        provider: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider, self.status, self.retry_after_s = provider, status, retry_after_s


class Unreachable(ProviderError):
    """No connection could be made, or it broke."""


class Forbidden(ProviderError):
    """An address is neither loopback nor private and was not allowed."""

    temporary = False


class Rejected(ProviderError):
    """The server answered with an HTTP error, or an error inside a 200 stream."""

    @property
    def temporary(self) -> bool:  # type: ignore[override]
        """Busy, overloaded and broken servers may recover; a refused request stays refused."""
        return self.status is None or self.status in (408, 425, 429) or self.status >= 500

    @property
    def elsewhere(self) -> bool:  # type: ignore[override]
        """What is wrong with the request itself is wrong everywhere."""
        return self.status not in (400, 413, 422)


class BadAnswer(ProviderError):
    """A 200 answer is not what this kind of server sends, empty, or cut short."""


class TimedOut(ProviderError):
    """An answer did not come, or did not end, within the time allowed."""


class ModelMissing(ProviderError):
    """The server does not have the model."""

    temporary = False


class UnlikeProviders(PocError):
    """Providers hold different models, so that their work would not be equal."""


class EngineError(PocError):
    """No embedded engine works here, or one does not start or answer."""


class StatisticsError(PocError):
    """A statistic was asked of numbers that cannot carry it."""


class RunFailed(PocError):
    """A run ended without enough answers; what was measured stays on disk."""
