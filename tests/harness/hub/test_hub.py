"""hf://org/name: headers and settings come over HTTP, values never, and no server can do harm."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.evidence.files.header_only import WHY
from harness.findings import Status, Verdict
from harness.hub.client import HubClient, HubError
from harness.hub.mirror import open_mirror
from harness.hub.names import find_token, parse_hub_name
from harness.selftest.edit import edit_json, edit_tensors, rename_tensors
from mudpuppy.errors import ModelError, UsageError
from tests.harness.hub.hub_server import COMMIT, Handler, Hub, busy, serve


def same_room() -> list[str]:
    return sorted(map(str, Path(tempfile.gettempdir()).glob("mudpuppy-hub-*")))


def test_a_healthy_model_is_healthy_as_far_as_headers_say_and_no_value_is_fetched(hub):
    before = same_room()
    found = diagnose("hf://org/model")

    assert found.verdict is Verdict.HEALTHY, found.why
    size = sum(f.stat().st_size for f in hub.folders["org/model"].iterdir())
    assert hub.sent_bytes < size + 2000  # the whole model is smaller than one first range
    values = next(one for one in found.probes if one.name == "weights-nonfinite")
    assert (values.status, values.reason) == (Status.SKIPPED, WHY)
    assert found.path == "hf://org/model"
    assert found.facts["hub"]["hf://org/model"]["revision"] == COMMIT
    assert same_room() == before


def test_of_a_large_file_only_the_header_is_fetched(hub):
    path = hub.folders["org/model"] / "model.safetensors"
    raw = path.read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    with path.open("r+b") as handle:  # 40 MB more in one tensor, as the header then says
        header = json.loads(raw[8:length])
        last = max(header, key=lambda k: header[k].get("data_offsets", [0, 0])[1])
        more = 40_000_000
        header["extra"] = {
            "dtype": "U8",
            "shape": [more],
            "data_offsets": [
                header[last]["data_offsets"][1],
                header[last]["data_offsets"][1] + more,
            ],
        }
        text = json.dumps(header).encode()
        handle.write(len(text).to_bytes(8, "little") + text + raw[length:])
        handle.truncate(8 + len(text) + len(raw) - length + more)
    diagnose("hf://org/model")

    assert hub.sent_bytes < 2_000_000


def test_what_headers_show_is_found(hub):
    edit_tensors(hub.folders["org/model"], lambda t: {f"_orig_mod.{k}": v for k, v in t.items()})
    rename_tensors(hub.folders["org/lora"], ".weight", ".default.weight")

    names = {one.name for one in diagnose("hf://org/model").findings}
    assert "wrapper-prefix-left" in names
    adapter = diagnose("hf://org/lora", base="hf://org/model")
    assert adapter.verdict is Verdict.SICK


def test_a_base_on_the_hub_is_compared_by_its_headers_alone(hub, ward):
    local = ward.get("peft-lora").path
    found = diagnose(local, base="hf://org/model")

    assert found.verdict is Verdict.HEALTHY, found.why
    assert any(
        one.name == "weights-nonfinite" and one.status is Status.PASSED for one in found.probes
    )
    assert "mudpuppy-hub" not in json.dumps(found.to_json())


def test_holes_are_never_taken_for_zeros(hub):
    found = diagnose("hf://org/model", base="hf://org/model")

    spoke = [one for one in found.probes if one.status is Status.FAILED]
    assert not spoke
    passed = {one.name for one in found.probes if one.status is Status.PASSED}
    assert passed.isdisjoint({"weights-nonfinite", "weights-all-zero", "merge-without-effect"})


@pytest.mark.parametrize("revision", ["v1", COMMIT, "refs/pr/1"])
def test_a_revision_may_be_named(hub, revision):
    assert diagnose(f"hf://org/model@{revision}").verdict is Verdict.HEALTHY


def test_folders_and_files_of_a_repository_may_be_named(hub):
    top = hub.folders["org/model"]
    shutil.copytree(hub.folders["org/lora"], top / "lora")

    assert diagnose("hf://org/model/lora").facts["subjects"][0]["kind"] == "adapter"
    assert diagnose("hf://org/model/model.safetensors").verdict is Verdict.HEALTHY
    with pytest.raises(ModelError, match="no files in nowhere"):
        diagnose("hf://org/model/nowhere")


@pytest.mark.parametrize(
    "word",
    ["hf://", "hf://org", "hf://org/../x", "hf://org/name/../../x", "hf://a b/c", "hf://o/n@"],
)
def test_other_forms_are_refused(word):
    with pytest.raises(UsageError, match="no name of a model hub"):
        parse_hub_name(word)


def test_what_does_not_exist_is_said(hub):
    with pytest.raises(ModelError, match="has no hf://org/none"):
        diagnose("hf://org/none")
    with pytest.raises(ModelError, match="no such revision"):
        diagnose("hf://org/model@gone")


def test_a_gated_repository_says_what_to_do_and_a_token_opens_it(hub, monkeypatch):
    hub.token = "secret-token"
    with pytest.raises(ModelError, match="HF_TOKEN"):
        diagnose("hf://org/model")
    monkeypatch.setenv("HF_TOKEN", "secret-token")

    found = diagnose("hf://org/model")

    assert found.verdict is Verdict.HEALTHY
    assert "secret-token" not in json.dumps(found.to_json())


def test_the_token_stays_with_the_hub_when_it_redirects_to_a_store(hub, monkeypatch):
    store = Hub()
    store.folders = hub.folders
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with serve(store) as address:
        hub.store = address
        assert diagnose("hf://org/model").verdict is Verdict.HEALTHY

    assert store.asked
    assert all("Authorization" not in headers for _, _, headers in store.asked)
    assert any("Authorization" in headers for _, _, headers in hub.asked)


def test_a_server_without_ranges_is_read_no_further_than_is_needed(hub):
    hub.knows_ranges = False
    path = hub.folders["org/model"] / "model.safetensors"
    with path.open("ab") as handle:
        handle.truncate(path.stat().st_size + 200_000_000)
    begun = time.monotonic()
    diagnose("hf://org/model")

    assert hub.sent_bytes < 100_000_000
    assert time.monotonic() - begun < 10


def test_a_busy_hub_is_asked_again_and_not_for_ever(hub):
    hub.trick = busy(2, {"Retry-After": "0"})
    assert diagnose("hf://org/model").verdict is Verdict.HEALTHY
    hub.trick = busy(99, {"Retry-After": "0"})
    with pytest.raises(HubError, match="answers 429"):
        diagnose("hf://org/model")
    hub.trick = busy(1, {"Retry-After": "86400"})
    begun = time.monotonic()
    with pytest.raises(HubError, match="answers 429"):
        diagnose("hf://org/model")
    assert time.monotonic() - begun < 10


HOSTILE = [
    "../../escape.json", "/etc/passwd.json", "a/../../b.json", "..", "",
    "x\n.json", "\x1b[31m.json",
    "a" * 300 + ".json", "C:\\x.json", "\ud800.json", None, 7, "sub/\x00.json",
]  # fmt: skip


def test_hostile_names_in_a_listing_are_left_out(hub, tmp_path):
    names = [{"rfilename": name, "size": 3} for name in HOSTILE]
    hub.siblings = [*names, {"rfilename": "config.json", "size": 30}]
    before = sorted(tmp_path.rglob("*"))
    with open_mirror(parse_hub_name("hf://org/model"), lambda text: None) as mirror:
        held = [str(path.relative_to(mirror.path)) for path in mirror.path.rglob("*")]

    assert held == ["config.json"]
    assert len(mirror.left_out) == len(HOSTILE)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("answer", "headers"),
    [
        (b"<html>a page</html>", {}),
        (b"[]", {}),
        (b'{"siblings": 5}', {}),
        (b"[" * 100_000, {}),
        (gzip.compress(b"{}" * 1000), {"Content-Encoding": "gzip"}),
        (b"\xff\xfe", {}),
    ],
)
def test_a_server_that_is_no_hub_is_told_from_one(hub, answer, headers):
    hub.trick = lambda handler, path: (handler.say(200, answer, headers), True)[1]

    with pytest.raises(HubError):
        diagnose("hf://org/model")


def test_a_listing_that_never_ends_is_given_up(hub, monkeypatch):
    monkeypatch.setattr("harness.hub.mirror.LISTING_LIMIT_BYTES", 100_000)

    def trick(handler: Handler, path: str) -> bool:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b" " * 10_000)
        return True

    hub.trick = trick
    with pytest.raises(HubError, match="longer than"):
        diagnose("hf://org/model")


def test_a_slow_server_is_given_up_in_time(hub):
    def trick(handler: Handler, path: str) -> bool:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    hub.trick = trick
    client = HubClient(budget_s=0.5, socket_s=0.3)
    begun = time.monotonic()
    with pytest.raises(HubError, match="took more than"):
        client.get_json("/api/models/org/model/revision/main", 10_000, "it")
    assert time.monotonic() - begun < 10


def test_a_wrong_part_is_not_taken_for_the_right_one(hub):
    def trick(handler: Handler, path: str) -> bool:
        if not path.endswith(".safetensors"):
            return False
        handler.say(206, b"x" * 100, {"Content-Range": "bytes 500-599/1000"})
        return True

    hub.trick = trick
    with pytest.raises(HubError, match="another part"):
        diagnose("hf://org/model")


def test_a_size_that_no_file_has_is_refused(hub):
    def trick(handler: Handler, path: str) -> bool:
        if not path.endswith(".safetensors"):
            return False
        handler.say(206, b"\x10" + b"\0" * 7 + b"{}" * 8, {"Content-Range": f"bytes 0-23/{2**70}"})
        return True

    hub.trick = trick
    with pytest.raises(HubError):
        diagnose("hf://org/model")


def test_a_pointer_file_is_recognised(hub):
    (hub.folders["org/model"] / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    assert "weights-file-unreadable" in {one.name for one in diagnose("hf://org/model").findings}


def test_pickled_weights_are_not_fetched_and_that_is_said(hub):
    folder = hub.folders["org/model"]
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    found = diagnose("hf://org/model")

    assert found.verdict is not Verdict.HEALTHY
    assert any("pytorch_model.bin" in remark for remark in found.remarks)


def test_nobody_asks_the_network_unless_the_hub_is_named(hub, ward):
    edit_json(hub.folders["org/lora"] / "adapter_config.json", base_model_name_or_path="org/model")
    diagnose(hub.folders["org/lora"])

    assert not hub.asked


def test_the_hubs_own_client_understands_this_server(hub, tmp_path):
    pytest.importorskip("huggingface_hub")
    code = (
        "import sys; from huggingface_hub import HfApi, hf_hub_download\n"
        "info = HfApi().model_info('org/model', files_metadata=True)\n"
        "print(info.sha, len(info.siblings))\n"
        "print(open(hf_hub_download('org/model', 'config.json')).read(1))\n"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [COMMIT, str(len(list(hub.folders["org/model"].iterdir()))), "{"]


def test_tokens_come_from_the_usual_places(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert find_token() is None
    (tmp_path / "token").write_text("from-file\n")
    assert find_token() == "from-file"
    monkeypatch.setenv("HF_TOKEN", "from-variable")
    assert find_token() == "from-variable"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert find_token() is None


def test_an_adapter_of_a_hub_takes_no_base_of_this_machine(hub, tmp_path, monkeypatch):
    """Its settings were written elsewhere: a folder of that name here is another model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(hub.folders["org/model"], tmp_path / "base")
    settings = hub.folders["org/lora"] / "adapter_config.json"
    for name in ("base", str(tmp_path / "base")):
        edit_json(settings, base_model_name_or_path=name)
        assert diagnose("hf://org/lora").facts["subjects"][0]["base"] is None
    local = tmp_path / "here" / "lora"
    shutil.copytree(hub.folders["org/lora"], local)
    edit_json(local / "adapter_config.json", base_model_name_or_path="base")
    facts = diagnose(local).facts["subjects"][0]
    assert facts["base"] == "base"
    assert facts["base_named_by"] == "adapter_config.json, in the current folder"
    shutil.copytree(tmp_path / "base", tmp_path / "here" / "base")
    facts = diagnose(local).facts["subjects"][0]
    assert facts["base"] == str(tmp_path / "here" / "base")
    assert facts["base_named_by"] == "adapter_config.json"
