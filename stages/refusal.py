"""Which errors of a stage say that its input has to be mended, and which a second try may be without."""

from __future__ import annotations

from collections.abc import Iterator

from stages.recorder import TrackingError

REFUSED, FAILED = 2, 1  # exit codes of a stage
_OF_THE_INPUT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def is_refusal(error: BaseException) -> bool:
    """Parameters, data, weights or a missing package are wrong, so that trying again cannot help.

    False where a disk, a network, memory or MLflow failed, also behind an error that a later one says better.
    """
    return not any(_may_pass(each) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, _OF_THE_INPUT)
    if isinstance(error, TrackingError):
        return True
    if isinstance(error, RuntimeError | MemoryError):
        from vall_e.training.memory import is_memory_error

        return is_memory_error(error)
    return False
