"""Errors with a class of their own, and the words in which users read any error."""

from __future__ import annotations

import errno
import json

# What the operating system means, in the words of a message about a file.
REASONS = {
    errno.EISDIR: "is a folder; name a file",
    errno.ENOTDIR: "has a file where a folder is needed",
    errno.ENOENT: "does not exist",
    errno.EEXIST: "is there already and is no folder",
    errno.EACCES: "may not be read or written by this user",
    errno.EPERM: "may not be read or written by this user",
    errno.EROFS: "is on a read-only file system",
    errno.ENOSPC: "does not fit: the disk is full",
    errno.ENAMETOOLONG: "has too long a name",
}


def plain_message(error: BaseException) -> str:
    """Returns an error's message on one line, without the words of Python and the system.

    Args:
        error: an error of the system, of decoding text or JSON, or any other, whose message stays.
    """
    if isinstance(error, OSError) and error.errno in REASONS and error.filename is not None:
        return f"{str(error.filename)!r} {REASONS[error.errno]}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno} is not valid JSON"
    return " ".join(str(error).split()) or type(error).__name__


class UnsupportedModelError(TypeError):
    """The model's family, or its configuration, is not supported."""


class UnsupportedVersionError(RuntimeError):
    """The installed version of a library has not been tested with gprune."""
