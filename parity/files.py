"""Files that parity writes: whole under their name or not at all, and never in place of what is somebody else's.

A target is checked before the work begins. Regular files are replaced when the new one is whole; devices and pipes are written to; what a
killed run left half-written beside a target goes when the target is next written.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parity.boundary.text import reason
from parity.errors import CaseError, WriteError

_STEM = 80  # characters of a target's name that its temporary file keeps: names have 255 bytes at most
_DIRECT = ("/dev/", "/proc/")  # names of open files and devices


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it to `path` when the block ends well, remove it when it does not.

    Raises ParityError, one line, when it cannot be written (a full disk, a folder in the way): what was there stays.
    """
    path = Path(path)
    try:
        if _is_stream(path):
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / "stream"
                yield temporary
                with temporary.open("rb") as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            return
        path = Path(os.path.realpath(path)) if path.is_symlink() else path  # the link stays a link
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f".{path.name[:_STEM]}.", ".part")
        handle, temporary = _held_temporary(path)
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; reports are meant to be shared
            temporary.replace(path)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.__class__ is BrokenPipeError:
            raise
        raise WriteError(f"cannot write {path}: {reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8; a lone half of a character pair becomes a question mark."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))


def _held_temporary(path: Path) -> tuple[int, Path]:
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:_STEM]}.", suffix=".part", dir=path.parent)
        if hold(handle):
            return handle, Path(name)
        os.close(handle)


def hold(handle: int) -> bool:
    """Lock an open file while this process lives, so that its temporary files are told from those of the dead; False if it is gone already."""
    with suppress(ImportError, OSError):  # not on every system, nor on every shared folder
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


def sweep(folder: Path, prefix: str, suffix: str) -> None:
    """Remove the temporary files of processes that are gone; where that cannot be told they stay."""
    with suppress(ImportError, OSError):
        import fcntl

        for entry in list(os.scandir(folder)):
            if not (entry.name.startswith(prefix) and entry.name.endswith(suffix)):
                continue
            with suppress(OSError), open(entry.path, "rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)


def check_target(path: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Check, before anything runs, that a file can be written and is none of the inputs. Raises CaseError with what to do."""
    if path is None:
        return
    path = Path(path)
    try:
        if path.is_dir():
            raise CaseError(f"cannot write {path}: it is a folder; name a file")
        for given in inputs:
            if _is_part_of(path, Path(given)):
                raise CaseError(f"cannot write {path}: it is one of the inputs; name another file")
        if not _is_stream(path):
            _try_folder(path.parent, path.name)
    except (OSError, ValueError) as error:
        raise CaseError(f"cannot write {path}: {reason(error)}") from None


def check_folder(path: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Check, before anything runs, that files can be written into a folder. Raises CaseError with what to do."""
    if path is None:
        return
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise CaseError(f"cannot write into {path}: it is no folder")
        for given in inputs:
            if Path(given).is_dir() and path.exists() and os.path.samefile(path, given):
                raise CaseError(f"cannot write into {path}: it is one of the inputs; name another folder")
        _try_folder(path, "x")
    except (OSError, ValueError) as error:
        raise CaseError(f"cannot write into {path}: {reason(error)}") from None


def _try_folder(folder: Path, name: str) -> None:
    """Open a file in the nearest folder that is there, and look at the names of what is still to be made."""
    there = folder
    while not there.exists():
        if there.is_symlink():
            raise CaseError(f"cannot write below {there}: it is a link to nothing")
        there = there.parent
    for part in (*folder.parts, name):
        if len(os.fsencode(part)) > 255:
            raise CaseError(f"cannot write into {folder}: a name in it is too long")
    if not there.is_dir():
        raise CaseError(f"cannot write below {there}: it is no folder")
    with tempfile.TemporaryFile(dir=there):  # without a name where the system can: nothing stays behind a kill
        pass


def _is_stream(path: Path) -> bool:
    """Tell whether a path is a device, a pipe or the name of an open file: written to, never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or str(path.absolute()).startswith(_DIRECT)


def _is_part_of(path: Path, given: Path) -> bool:
    """Tell whether a path is an input, or lies inside a folder that is one."""
    if not given.exists():
        return False
    if path.exists() and os.path.samefile(path, given) and not _is_stream(path):
        return True
    return given.is_dir() and Path(os.path.realpath(given)) in Path(os.path.realpath(path)).parents
