"""Hidden states come back unchanged, from memory or from files, and no file outlives its run."""

import pytest
import torch

from mudpuppy.errors import EngineError
from mudpuppy.leftovers import ACTIVATIONS_PREFIX, holds_only_leftovers, remove_unfinished
from mudpuppy.quant.hidden_store import HiddenStore


def make(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 8, 16, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_comes_back_from_memory_and_from_disk(tmp_path, dtype):
    size = make(0, dtype).nbytes
    with HiddenStore(tmp_path, limit_bytes=2 * size) as store:
        slots = [store.place_for(make(seed, dtype)) for seed in range(5)]
        assert store.bytes_on_disk == 3 * size
        files = list(tmp_path.rglob("*.bin"))
        assert sorted(path.stat().st_size for path in files) == [size] * 3
        for seed, slot in enumerate(slots):
            assert torch.equal(slot.get(), make(seed, dtype))
            slot.put(make(100 + seed, dtype))
        for seed, slot in enumerate(slots):
            assert torch.equal(slot.get(), make(100 + seed, dtype))
    assert not any(tmp_path.iterdir())


def test_nothing_is_written_within_the_limit_or_without_a_folder(tmp_path):
    with HiddenStore(tmp_path, limit_bytes=1 << 20) as store:
        store.place_for(make(0))
        assert not any(tmp_path.iterdir())
    slot = HiddenStore().place_for(make(1))
    assert torch.equal(slot.get(), make(1))


def test_files_go_when_the_run_fails_and_when_the_next_one_starts_after_a_kill(tmp_path):
    def fail() -> None:
        with HiddenStore(tmp_path) as store:
            store.place_for(make(0))
            assert any(tmp_path.iterdir())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not any(tmp_path.iterdir())
    left = tmp_path / f"{ACTIVATIONS_PREFIX}999999"
    left.mkdir()
    (left / "000000.bin").write_bytes(b"x" * 100)
    assert holds_only_leftovers(tmp_path)
    with HiddenStore(tmp_path):
        assert not left.exists()
    left.mkdir()
    remove_unfinished(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_not_a_dead_process(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"), HiddenStore(tmp_path) as store:
        store.place_for(make(0))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_another_shape_or_type_is_refused(tmp_path, limit):
    with HiddenStore(tmp_path, limit) as store:
        slot = store.place_for(make(0))
        with pytest.raises(EngineError, match="a block turned hidden states"):
            slot.put(make(0).to(torch.float64))
        with pytest.raises(EngineError, match="a block turned hidden states"):
            slot.put(make(0)[:, :4])
