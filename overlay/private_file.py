"""Reads a small file that this user wrote, out of a folder that others may have put things into."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: A status file of a process with every patch there is takes about 20 kB.
MOST_BYTES = 1 << 20


def read(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of this user's, or of root's.

    Raises ValueError for anything else under that name (a link is not followed, a pipe is not waited for) and for more
    than `most` bytes; OSError where the file cannot be opened.
    """
    try:
        with open(path, "rb", opener=_open) as stream:
            info = os.fstat(stream.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ValueError("it is no regular file")
            if info.st_uid not in (os.getuid(), 0):
                raise ValueError(f"it belongs to another user (uid {info.st_uid})")
            content = stream.read(most + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a symbolic link") from None
        raise
    if len(content) > most:
        raise ValueError(f"it holds more than {most} bytes")
    return content


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
