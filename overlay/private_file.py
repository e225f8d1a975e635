"""Small files of this user's, in folders that others may have put things into: read with care, replaced in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: A status file of a process with every patch there is takes about 20 kB.
MOST_BYTES = 1 << 20


def read(path: Path) -> bytes:
    """The content of a regular file of this user's, or of root's.

    Raises ValueError for anything else under that name (a link is not followed, a pipe is not waited for) and for more
    than MOST_BYTES; OSError where the file cannot be opened.
    """
    try:
        with open(path, "rb", opener=_open) as stream:
            info = os.fstat(stream.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ValueError("it is no regular file")
            if info.st_uid not in (os.getuid(), 0):
                raise ValueError(f"it belongs to another user (uid {info.st_uid})")
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a symbolic link") from None
        raise
    if len(content) > MOST_BYTES:
        raise ValueError(f"it holds more than {MOST_BYTES} bytes")
    return content


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, private to the user, that is `path` once the block has ended: a reader sees the old one or the new
    one, never half of one. It is no file if anything is raised. Raises OSError where it cannot be made."""
    import tempfile  # with shutil and random; a launch replaces nothing

    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w+b") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:  # also an interrupt must not leave litter behind
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
