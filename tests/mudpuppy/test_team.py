"""Several processes over gloo: the same run as one process with the doubled batch, written once."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mudpuppy.tiny import resolve_model

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    answers = ["It eats worms.", "No.", "At night, when the water is cold.", "In the pond."] * 4
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a}]}
        for i, a in enumerate(answers)
    ]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(home, output, *words, processes=1):
    command = [sys.executable, "-m", "mudpuppy"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["torch.distributed.run", f"--nproc_per_node={processes}"]
        command = [sys.executable, "-m", *launcher, f"--master_port={port}", "-m", "mudpuppy"]
    command += [
        resolve_model("tiny:llama"),
        str(home / "chat.jsonl"),
        "--output",
        str(home / output),
    ]
    command += ["--precision", "fp32", "--max-steps", "3", "--learning-rate", "1e-3", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def assert_close(left, right):
    assert losses_of(left) == pytest.approx(losses_of(right), rel=1e-5)
    a, b = (load_file(next(one.glob("*model.safetensors"))) for one in (left, right))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_equal_one_with_the_doubled_batch(home, method):
    words = ["--method", method]
    one = run(home, f"{method}-one", *words, "--batch-size", "4")
    ddp = run(home, f"{method}-ddp", *words, "--batch-size", "2", processes=2)
    sharded = ["--fsdp", "full_shard"]
    fsdp = run(home, f"{method}-fsdp", *words, "--batch-size", "2", *sharded, processes=2)

    assert (0, 0, 0) == (one.returncode, ddp.returncode, fsdp.returncode), fsdp.stderr
    assert 3 == len(losses_of(home / f"{method}-ddp"))
    assert 1 == ddp.stdout.count("step 3/3") == ddp.stdout.count("saved to")
    assert_close(home / f"{method}-one", home / f"{method}-ddp")
    assert_close(home / f"{method}-ddp", home / f"{method}-fsdp")
    names = [sorted(p.name for p in (home / f"{method}-{n}").iterdir()) for n in ("one", "fsdp")]
    assert names[0] == names[1]


def test_a_refusal_of_the_first_process_ends_all(home):
    (home / "taken").mkdir()
    (home / "taken" / "something").touch()
    refused = run(home, "taken", processes=2)

    assert 0 != refused.returncode
    assert "is not empty" in refused.stderr
    assert ["something"] == [path.name for path in (home / "taken").iterdir()]
