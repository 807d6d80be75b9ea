"""What fails in one process fails in all: any kind of failure, retold where it did not happen."""

import pytest
import torch.distributed as dist

from mudpuppy import team
from mudpuppy.errors import EngineError, UsageError


def among(monkeypatch, rank, others):
    """Stand in for the gathering: what the other processes would have sent."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))

    def gather(everyone, mine, group=None):
        del group
        everyone[:] = [others, mine] if rank else [mine, others]

    monkeypatch.setattr(dist, "all_gather_object", gather)


def fail(error):
    raise error


def test_any_failure_is_sent_to_the_others_and_raised_as_it_was(monkeypatch):
    among(monkeypatch, 0, None)
    with pytest.raises(OSError, match="disk is full"):
        team.agree(lambda: fail(OSError("disk is full")))


@pytest.mark.parametrize(
    ("sent", "kind"),
    [((2, "no such file", "type this"), UsageError), ((3, "off", ""), EngineError)],
)
def test_the_failure_of_another_is_retold(monkeypatch, sent, kind):
    among(monkeypatch, 0, sent)
    with pytest.raises(kind, match=f"process 1: {sent[1]}") as raised:
        team.agree(lambda: "done")
    assert not raised.value.is_own
    assert sent[2] == raised.value.hint


def test_a_foreign_failure_is_told_with_its_kind():
    assert (3, "OSError: disk is full", "") == team._told(OSError("disk is full"))


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_run_on_the_processor_leaves_the_gpu_alone(monkeypatch, on_cpu):
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: asked.append(cpu))
    monkeypatch.setattr(dist, "new_group", lambda **settings: settings)
    monkeypatch.setattr(team, "_waiting", [])
    team.join(on_cpu=on_cpu)
    assert [on_cpu] == asked
    assert [{"backend": "gloo", "timeout": team.PATIENCE}] == team._waiting


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_alone_works_and_the_others_are_told(monkeypatch, rank):
    among(monkeypatch, rank, None)
    done = []

    def broadcast(told, src, group=None):
        del group
        assert 0 == src
        assert [None if rank else "found"] == told
        told[:] = ["found"]

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)

    assert "found" == team.told_by_first(lambda: done.append(rank) or "found")
    assert ([] if rank else [0]) == done
