"""The tree of errors. Every error that poclib raises on purpose is one of these.

PocError
├── ParameterError      a key, value or file of parameters is wrong
├── ReportError         a report cannot be read, written, or understood
│   ├── NewerReport     the report was written by a newer poclib
│   └── FolderHeld      another run is writing to the folder
├── ProviderError       one provider did not do what was asked of it
│   ├── Unreachable     no connection: refused, timed out, unknown name, reset
│   ├── Forbidden       its address is outside loopback and private ranges
│   ├── Rejected        it answered with an HTTP error (status, its own message)
│   ├── BadAnswer       it answered 200, but with no whole answer of its kind
│   ├── TimedOut        it did not finish within the time allowed
│   └── ModelMissing    it does not have the model that was asked for
├── UnlikeProviders     the providers would not do equal work (digests differ)
├── EngineError         an embedded engine could not be found or started
├── StatisticsError     too few or impossible numbers for what was asked
└── RunFailed           an experiment ended without what its report needs

A message says what happened, where (file, key, provider), and what to do next.
The command line prints it as one line and exits with `exit_code`; nobody sees a traceback.
This module imports nothing of ours.
"""

from __future__ import annotations


class PocError(Exception):
    """Something a person can mend. Base of the tree."""

    exit_code = 3


class ParameterError(PocError):
    """Raised when a parameter is missing, misspelled, of the wrong type or out of range."""


class ReportError(PocError):
    """Raised when a report is absent, truncated, not a report, or cannot be written."""


class NewerReport(ReportError):
    """Raised when a report's version is newer than this poclib knows."""


class FolderHeld(ReportError):
    """Raised when another run holds the folder: two at once would measure each other."""


class ProviderError(PocError):
    """Raised when one provider fails; `provider` is its name, never its address.

    `status` is the HTTP status, where there was one, and `retry_after_s` what the server
    asked for. `temporary` says whether the same request may succeed a moment later,
    `elsewhere` whether another provider may answer it.
    """

    temporary = True
    elsewhere = True

    def __init__(
        self,
        message: str,
        provider: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.retry_after_s = retry_after_s


class Unreachable(ProviderError):
    """Raised when no connection could be made or the connection broke."""


class Forbidden(ProviderError):
    """Raised when an address is neither loopback nor private and was not allowed."""

    temporary = False


class Rejected(ProviderError):
    """Raised when the server answers with an HTTP error, or an error inside a 200 stream."""

    @property
    def temporary(self) -> bool:  # type: ignore[override]
        """Busy, overloaded and broken servers may recover; a refused request stays refused."""
        return self.status is None or self.status in (408, 425, 429) or self.status >= 500

    @property
    def elsewhere(self) -> bool:  # type: ignore[override]
        """What is wrong with the request itself is wrong everywhere."""
        return self.status not in (400, 413, 422)


class BadAnswer(ProviderError):
    """Raised when a 200 answer is not what this kind of server sends, empty, or cut short."""


class TimedOut(ProviderError):
    """Raised when an answer did not come, or did not end, within the time allowed."""


class ModelMissing(ProviderError):
    """Raised when the server does not have the model."""

    temporary = False


class UnlikeProviders(PocError):
    """Raised when providers hold different models, so that their work would not be equal."""


class EngineError(PocError):
    """Raised when no embedded engine works here, or one does not start or answer."""


class StatisticsError(PocError):
    """Raised when a statistic is asked of numbers that cannot carry it."""


class RunFailed(PocError):
    """Raised when a run ends without enough answers; what was measured stays on disk."""
