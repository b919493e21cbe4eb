"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file under a temporary name beside `path` and move it there when it is complete.

        with atomic_path('data.npz') as temporary, open(temporary, 'wb') as file:
            np.savez(file, **arrays)

    The file is synced to the disk before it takes the name, so that a killed process or a full
    disk leaves either the old file or the new one.

    Raises:
        OSError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f'could not write {path}: {error.strerror or error}. Nothing half-written was left; '
            'free disk space or choose another folder, and run it again',
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
