"""A dataset that cannot be used costs nothing: exit code 2, no torch, no traceback, no folder."""

import json
import subprocess
import sys
from pathlib import Path

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
BROKEN = {
    "empty.jsonl": (b"", "lora", "holds no samples"),
    "fields.jsonl": (b'{"mesages": []}', "lora", "did you mean 'messages'"),
    "mixed.json": (json.dumps([CHAT, {"text": "x"}]).encode(), "full", "one dataset holds one"),
    "utf16.jsonl": ('{"text": "x"}'.encode("utf-16"), "lora", "is not UTF-8"),
    "label.jsonl": (b'{"prompt": "a", "completion": "b", "label": 3}', "kto", "label is 3"),
    "image.jsonl": (
        json.dumps(CHAT | {"images": ["gone.png"]}).encode(),
        "multimodal",
        "there is no image",
    ),
    "kind.jsonl": (json.dumps(CHAT).encode(), "dpo", "--method dpo learns from pairs"),
    "damaged.parquet": (b"PAR1 and no more", "lora", "cannot be read"),
}


def test_what_cannot_be_used_is_refused_before_torch_and_before_a_file_is_written(tmp_path: Path):
    for name, (content, _, _) in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    small = tmp_path / "small.jsonl"
    small.write_text(json.dumps(CHAT))
    runs = [[str(tmp_path / name), "--method", how] for name, (_, how, _) in BROKEN.items()]
    runs.append([str(small), "--method", "lora", "--early-stopping"])
    code = (
        "import sys\nfrom mudpuppy.cli import main\n"
        f"for words in {runs!r}:\n"
        f"    code = main(['tiny:llama', *words, '--output', {str(tmp_path / 'out')!r}])\n"
        "    assert code == 2, (code, words)\n"
        "    assert 'torch' not in sys.modules, words\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    for name, (_, _, expected) in BROKEN.items():
        assert expected in done.stderr, name
    assert "1 sample cannot be split into training and evaluation" in done.stderr
    assert not (tmp_path / "out").exists()
