"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file under a temporary name and move it to `path` when the block ends.

        with atomic_path('data.npz') as temporary, open(temporary, 'wb') as file:
            np.savez(file, **arrays)

    The file is on the disk before it takes the name, and the name before this returns, so that a
    killed process or a full disk leaves either the old file or the new one. What a killed process
    leaves besides, a folder ``.<name>.tmp`` beside `path`, the next call removes.

    Raises:
        OSError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    # A folder of its own, because safetensors puts a temporary of its own beside the file.
    scratch = path.parent / f'.{path.name}.tmp'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir()
        try:
            temporary = scratch / path.name
            yield temporary
            # safetensors makes files private to their owner; a new folder has the usual rights.
            temporary.chmod(scratch.stat().st_mode & 0o666)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f'could not write {path}: {error.strerror or error}. Nothing half-written was left; '
            'free disk space or choose another folder, and run it again',
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
