"""What the system ran out of, and what a person can do about it: the second half of a message about an OSError."""

from __future__ import annotations

import errno

NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})

_ADVICE = {
    errno.ENOSPC: "free some space there, or set {setting} to a folder on another disk",
    errno.EDQUOT: "free some of this user's space there, or set {setting} to a folder on another disk",
    errno.EFBIG: "raise this process's limit on the size of a file (ulimit -f)",
    errno.EMFILE: "raise this process's limit on open files (ulimit -n), or run fewer runs and calls at once",
    errno.ENFILE: "the whole system has no file descriptor left: run less on it, or raise its limit (fs.file-max)",
    errno.ENOMEM: "free some memory, or run less at once",
    errno.EACCES: "set {setting} to a folder that this user may write to",
    errno.EPERM: "set {setting} to a folder that this user may write to",
    errno.EROFS: "set {setting} to a folder that can be written to",
    errno.ENOENT: "set {setting} to a folder that exists",
    errno.ENOTDIR: "set {setting} to a folder that exists",
}


def told(error: OSError, *, setting: str = "TMPDIR") -> str:
    """What the system said, and what to do: ``"No space left on device; free some space there, or …"``.

    Args:
        setting: the option or variable that names the folder which is concerned.
    """
    said = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    return said if advice is None else f"{said}; {advice.format(setting=setting)}"


def no_descriptors(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is the lack of file descriptors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
            return True
        error = getattr(error, "os_error", None) or error.__cause__
    return False
