"""The temporary folder of a base that is read block by block goes, whatever ends the run."""

import gc
import os
import signal
import tempfile

from mudpuppy.leftovers import BASE_PREFIX
from mudpuppy.quant.lazy_base import LazyBlocks


def test_a_killed_run_s_folder_is_removed_by_the_next_and_a_living_one_s_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        kept = LazyBlocks()
        os.write(ends[1], b"x")
        signal.pause()
        os._exit(int(kept is None))
    os.read(ends[0], 1)
    (killed,) = tmp_path.iterdir()
    (killed / "weights.dat").write_bytes(b"x" * 100)
    assert killed.name.startswith(BASE_PREFIX)

    first = LazyBlocks()
    assert killed.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert killed.exists()
    second = LazyBlocks()
    assert not killed.exists()
    assert len(list(tmp_path.iterdir())) == 2

    del first, second
    gc.collect()
    assert not list(tmp_path.iterdir())
