"""The doctor's promises: verdicts, exit codes, chosen probes, live models, no torch when static."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from harness.doctor import assert_healthy, diagnose, diagnose_model
from harness.doctor.explain import find_probes
from harness.doctor.verdict import judge
from harness.doctor.visit import WORST, choose_probes
from harness.evidence import source
from harness.findings import ProbeResult, Severity, Status, Verdict
from harness.registry import load_probes
from mudpuppy.errors import ModelError, UsageError
from mudpuppy.tiny.build import MANIFEST
from mudpuppy.tiny.cache import cache_folder
from reports.commands.doctor import main
from tests.harness.checkpoints import (
    copy,
    edit_json,
    edit_tensors,
    save_adapter,
    save_base,
    save_merged,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("doctor") / "base")


def result(status: Status, severity: Severity | None = None) -> ProbeResult:
    return ProbeResult(
        code="MPD999", name="x", modes=(), status=status, severity=severity, reason="because"
    )


@pytest.mark.parametrize(
    ("results", "unread", "verdict"),
    [
        ([result(Status.PASSED)], {}, Verdict.HEALTHY),
        ([result(Status.PASSED), result(Status.SKIPPED)], {}, Verdict.HEALTHY),
        ([result(Status.PASSED), result(Status.FAILED, Severity.NOTE)], {}, Verdict.HEALTHY),
        ([result(Status.FAILED, Severity.HIGH)], {}, Verdict.SICK),
        ([result(Status.FAILED, Severity.CRITICAL), result(Status.CRASHED)], {}, Verdict.SICK),
        ([result(Status.PASSED), result(Status.CRASHED)], {}, Verdict.UNKNOWN),
        ([result(Status.PASSED)], {".": "no weights"}, Verdict.UNKNOWN),
        ([result(Status.SKIPPED)], {}, Verdict.UNKNOWN),
        ([], {}, Verdict.UNKNOWN),
    ],
)
def test_the_verdict_follows_from_the_endings(results, unread, verdict):
    assert judge(results, unread)[0] is verdict


def test_every_probe_of_a_checkpoint_explains_itself_under_four_headings():
    for one in load_probes():
        if one.code[3] == "7":
            continue
        for heading in ("What it does:", "Why it is bad:", "Example:", "What to do:"):
            assert heading in one.documentation, one.name
            assert f"{heading}\n" not in one.documentation, f"{one.name}: text follows the heading"
        assert one.modes
        assert find_probes(one.code) == (one,) == find_probes(one.name)


def test_a_crashing_probe_is_shown_and_does_not_end_the_examination(base, monkeypatch):
    (one,) = choose_probes(["MPD301"], ())

    def crash(**_):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(
        "harness.doctor.visit.load_probes",
        lambda: (one.__class__(**{**vars(one), "check": crash}),),
    )
    diagnosis = diagnose(base)
    assert diagnosis.verdict is Verdict.UNKNOWN
    assert "ZeroDivisionError" in diagnosis.probes[0].reason


def test_evidence_is_capped_and_says_how_much_more_there_is(base, tmp_path):
    folder = save_base(tmp_path / "m")
    edit_tensors(folder, lambda t: {k: v * float("nan") for k, v in t.items()})
    finding = next(r for r in diagnose(folder).findings if r.name == "weights-nonfinite")
    assert len(finding.evidence) == WORST + 1
    assert finding.evidence[-1].found == 30 - WORST


def test_a_clean_live_model_is_healthy_with_and_without_an_adapter(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    assert diagnose_model(model).verdict is Verdict.HEALTHY
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert diagnose_model(wrapped).verdict is Verdict.HEALTHY
    assert diagnose_model(wrapped.merge_and_unload()).verdict is Verdict.HEALTHY


@pytest.mark.parametrize("name", ["peft_config", "_hf_peft_config_loaded"])
def test_a_leftover_on_a_live_model_is_found(base, name):
    model = AutoModelForCausalLM.from_pretrained(base)
    setattr(model, name, {"default": object()})
    (finding,) = diagnose_model(model).findings
    assert (finding.code, finding.evidence[0].tensor) == ("MPD501", name)
    assert "Already found a `peft_config` attribute in the model" in finding.message


def test_an_adapter_on_a_live_adapter_is_found(base):
    config = LoraConfig(target_modules=["q_proj"], r=2)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    twice = get_peft_model(wrapped, LoraConfig(target_modules=["v_proj"], r=2))
    assert "model-wrapped-twice" in {r.name for r in diagnose_model(twice).findings}


def test_two_adapters_side_by_side_are_allowed_on_a_live_model(base):
    config = LoraConfig(target_modules=["q_proj"], r=2)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    wrapped.add_adapter("reference", config)
    assert diagnose_model(wrapped).verdict is Verdict.HEALTHY


def test_assert_healthy_raises_with_the_finding(base, tmp_path):
    assert_healthy(base)
    folder = save_adapter(tmp_path / "a", base)
    edit_tensors(folder, lambda t: {k: torch.zeros_like(v) for k, v in t.items()})
    with pytest.raises(AssertionError, match="MPD203 adapter-never-trained"):
        assert_healthy(folder)


@pytest.mark.parametrize("word", ["MPD2", "MPD203", "adapter-never-trained", "FM08", "mpd203"])
def test_probes_are_chosen_by_code_prefix_name_or_mode(word):
    assert "MPD203" in {one.code for one in choose_probes([word], ())}
    assert "MPD203" not in {one.code for one in choose_probes([], [word])}


def test_mistakes_are_named_with_what_was_expected(base, tmp_path):
    with pytest.raises(UsageError, match=r"did you mean 'adapter-stacked'"):
        diagnose(base, select=["adapter-staked"])
    with pytest.raises(ModelError, match=r"does not exist.*did you mean 'base'"):
        diagnose(base.parent / "bse")
    with pytest.raises(ModelError, match="is no file of weights"):
        diagnose(base / "config.json")
    with pytest.raises(ModelError, match="is not a model"):
        diagnose(base, base=tmp_path)
    with pytest.raises(ModelError, match="is not an adapter"):
        diagnose(base, adapter=shutil.copytree(base, tmp_path / "twin"))
    with pytest.raises(ModelError, match="a quiz"):
        diagnose(base, quiz=tmp_path / "none.jsonl")


def statuses(diagnosis):
    return {r.name: (r.status, r.applies, r.reason) for r in diagnosis.probes}


def test_without_its_base_the_keys_of_an_adapter_are_not_said_to_match(base, tmp_path):
    folder = save_adapter(tmp_path / "a", base)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="someone/some-model")
    found = diagnose(folder)
    why = "the base someone/some-model is a hub id; pass --base PATH"
    assert statuses(found)["adapter-keys-dead"] == (Status.SKIPPED, True, why)
    assert found.verdict is Verdict.HEALTHY
    assert found.why.endswith("not checked")
    edit_tensors(folder, lambda t: {k.removeprefix("base_model."): v for k, v in t.items()})
    assert statuses(diagnose(folder))["adapter-keys-dead"][0] is Status.FAILED


def test_what_does_not_apply_is_told_from_what_was_not_checked(base):
    found = statuses(diagnose(base))
    assert found["adapter-stacked"] == (Status.SKIPPED, False, "the folder holds no adapter")
    assert found["eos-flood"][1]
    assert "--generate" in found["eos-flood"][2]
    assert not any(name in found for name in ("frozen-weights-moved", "leftover-peft-config"))


def test_probes_of_a_run_or_a_live_model_run_only_when_selected(base):
    chosen = {r.code: r for r in diagnose(base, select=["MPD5", "MPD7"]).probes}
    assert "MPD501" in chosen
    assert "MPD701" in chosen
    assert not any(result.applies for result in chosen.values())


def test_a_selection_that_needs_headers_alone_reads_no_values(base, monkeypatch):
    def refuse(*_):
        raise AssertionError("values were read")

    monkeypatch.setattr("harness.evidence.values.scan.fill", refuse)
    assert diagnose(base, select=["MPD101", "MPD303"]).verdict is Verdict.HEALTHY
    assert diagnose(base, select=["MPD301"]).verdict is Verdict.UNKNOWN


def test_a_nan_in_a_complex_number_is_found(base, tmp_path):
    folder = copy(base, tmp_path / "m")
    odd = torch.tensor([1 + 2j, complex(0, float("nan"))], dtype=torch.complex64)
    edit_tensors(folder, lambda t: t | {"extra.weight": odd})
    status, _, _ = statuses(diagnose(folder))["weights-nonfinite"]
    assert status is Status.FAILED


def test_a_tensor_that_is_named_twice_is_found(base, tmp_path):
    folder = copy(base, tmp_path / "m")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    first = raw[8 : 8 + size].rstrip()
    (name, entry), *_ = json.loads(first).items()
    if name == "__metadata__":
        name, entry = list(json.loads(first).items())[1]
    twice = first[:-1] + b"," + json.dumps({name: entry}).encode()[1:]
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + raw[8 + size :])
    found = diagnose(folder)
    assert [r.name for r in found.findings] == ["weights-file-unreadable"]
    assert f"names '{name}' twice" in found.findings[0].message


def test_modules_of_a_merge_that_cannot_be_compared_are_named(base, tmp_path):
    adapter = save_adapter(tmp_path / "a", base)
    merged = save_merged(tmp_path / "m", base, adapter)
    where = {"base": base, "adapter": adapter}
    assert statuses(diagnose(merged, **where))["merge-without-effect"][0] is Status.PASSED
    name = "model.layers.1.self_attn.q_proj.weight"
    edit_tensors(merged, lambda t: t | {name: t[name].to(torch.complex64)})
    status, applies, reason = statuses(diagnose(merged, **where))["merge-without-effect"]
    assert (status, applies) == (Status.SKIPPED, True)
    assert "model.layers.1.self_attn.q_proj (values of type" in reason


def test_the_embedded_model_is_a_base_once_it_is_built(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path))
    assert main([str(base), "--base", "tiny"]) == 2
    assert "run: mud-puppy tiny build" in capsys.readouterr().err
    assert main(["tiny:qwen2"]) == 2
    assert "mud-puppy tiny build --family qwen2" in capsys.readouterr().err
    assert main(["tiny:qwen9"]) == 2
    folder = copy(base, cache_folder())
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({"files": {"config.json": digest}}))
    assert main([str(base), "--base", "tiny"]) == 1
    assert "every one of 30 tensors is equal to the base" in capsys.readouterr().out


def test_a_misspelt_flag_is_told_its_neighbours(base, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(base), "--genrate"])
    assert stopped.value.code == 2
    assert "did you mean '--generate'" in capsys.readouterr().err


def test_a_crash_of_the_doctor_is_no_finding(base, monkeypatch, capsys):
    def crash(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("reports.commands.doctor.diagnose", crash)
    assert main([str(base)]) == 3
    assert "ZeroDivisionError: by zero" in capsys.readouterr().err


def test_two_examinations_give_the_same_json(base):
    assert diagnose(base).to_json() == diagnose(base).to_json()


def test_the_command_ends_with_the_four_exit_codes(base, tmp_path, capsys):
    assert main([str(base)]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("HEALTHY - ")
    assert out.err == ""
    sick = save_base(tmp_path / "sick")
    (sick / "model.safetensors").write_bytes(b"")
    assert main([str(sick)]) == 1
    assert capsys.readouterr().out.startswith("SICK -")
    assert main([str(tmp_path / "none")]) == 2
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 3
    assert "UNKNOWN -" in capsys.readouterr().out
    assert main(["explain", "MPD203"]) == 0
    assert "What to do:" in capsys.readouterr().out
    assert main(["explain", "MPD9999"]) == 2
    assert main(["list"]) == 0
    assert main(["list", "FM17"]) == 0
    assert "MPD201" in capsys.readouterr().out


def test_the_report_is_written_whole_or_not_at_all(base, tmp_path, capsys):
    target = tmp_path / "report.json"
    assert main([str(base), "--format", "json", "--output", str(target)]) == 0
    value = json.loads(target.read_text())
    keys = ["code", "name", "modes", "status", "severity", "message", "evidence", "reason"]
    assert all(set(keys) <= set(probe) for probe in value["probes"])
    assert (value["schema_version"], value["verdict"]) == (3, "healthy")
    assert capsys.readouterr().out == ""
    assert main([str(base), "--output", str(tmp_path)]) == 2
    assert main([str(base), "--output", str(tmp_path / "no" / "x")]) == 2
    assert not (tmp_path / "no").exists()


def test_help_and_a_static_diagnosis_do_not_import_torch(base, tmp_path):
    twin = shutil.copytree(base, tmp_path / "twin")
    program = (
        "import sys\nfrom reports.commands.doctor import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"assert main([{str(base)!r}, '--base', {str(twin)!r}]) == 1  # equal to its base\n"
        "main(['list'])\n"
        "bad = {'torch', 'transformers', 'peft', 'pandas'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_provider_is_known_without_importing_its_file():
    package = Path(source.__file__).parent
    for path in package.glob("*/[a-z]*.py"):
        importlib.import_module(f"harness.evidence.{path.parent.name}.{path.stem}")
    known = {name: provider.__module__ for name, provider in source._PROVIDERS.items()}
    known = {name: module for name, module in known.items() if module.startswith("harness.")}
    assert known == {name: module for name, (module, _) in source.index_providers().items()}


@pytest.mark.parametrize(
    ("words", "most"), [(["--help"], 130), (["FOLDER", "--depth", "files"], 265)]
)
def test_help_and_files_alone_import_little_and_nothing_slow(base, words, most):
    """Time is mostly imports, and their number is the same on every machine."""
    words = [str(base) if word == "FOLDER" else word for word in words]
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom reports.commands.doctor import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "slow = {'numpy', 'pydantic', 'ml_dtypes', 'tokenizers', 'rich', 'importlib.metadata'}\n"
        "assert not slow & set(sys.modules), sorted(slow & set(sys.modules))\n"
        "new = sorted(set(sys.modules) - before)\n"
        f"assert len(new) <= {most}, (len(new), new)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
