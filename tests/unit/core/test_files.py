import errno
import os

import pytest

from purerl.core.files import atomic_path


def test_writes_a_new_file_and_its_folders(tmp_path):
    path = tmp_path / 'a' / 'b.bin'
    with atomic_path(path) as temporary:
        temporary.write_bytes(b'new')
        assert not path.exists()
    assert path.read_bytes() == b'new'
    assert os.listdir(path.parent) == ['b.bin']


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left'), RuntimeError('stop')])
def test_a_failure_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / 'b.bin'
    path.write_bytes(b'old')

    def write():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b'half')
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['b.bin']
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert 'b.bin' in str(caught.value)
        assert 'free disk space' in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with (
        pytest.raises(OSError, match=r'could not write .*file/b\.bin'),
        atomic_path(tmp_path / 'file' / 'b.bin'),
    ):
        pass
