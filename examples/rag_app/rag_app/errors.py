"""What the app refuses, each with the HTTP status that says so. The message is shown to the user as it is."""

from __future__ import annotations


class AppError(Exception):
    """Base class: a request that is not carried out. Its message says why, and what to do.

    Attributes:
        status: The HTTP status of the answer.
    """

    status = 400


class BadNameError(AppError):
    """A file name that cannot be shown."""

    status = 422


class UnknownKindError(AppError):
    """A file of a kind that is not read here, or that is not what its name says."""

    status = 415


class TooLargeError(AppError):
    """More bytes than are let in."""

    status = 413


class SilentError(AppError):
    """The rest of a file does not come."""

    status = 408


class UnreadableError(AppError):
    """A file that has no text to be had: broken, encrypted, empty, or made to exhaust who reads it."""

    status = 422


class DuplicateError(AppError):
    """The same content is there already, or is being uploaded by somebody else.

    Attributes:
        file_id: Of the file that is there.
    """

    status = 409

    def __init__(self, message: str, file_id: str) -> None:
        """Takes the file that is there."""
        super().__init__(message)
        self.file_id = file_id


class NotFoundError(AppError):
    """There is no such file, or there is none any more."""

    status = 404


class NotReadyError(AppError):
    """A file that cannot be asked yet."""

    status = 409


class TooManyError(AppError):
    """More files than a question is asked of."""

    status = 422


class EngineError(AppError):
    """The engine cannot be changed now."""

    status = 409


class SwitchingError(AppError):
    """The databases are closed for a moment."""

    status = 503


class BusyError(AppError):
    """As many questions are being answered as can be at once."""

    status = 503


class UnusableError(AppError):
    """The databases of all files that are asked cannot be used. Why is in the log."""

    status = 503


class UpstreamError(AppError):
    """The model or the bucket cannot be reached, or refuses. What it says is in the log."""

    status = 502
