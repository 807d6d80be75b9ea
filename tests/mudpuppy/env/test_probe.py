"""The probe reads what the kernel says, keeps to its list of variables, and outlives torch."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mudpuppy.env import compute, devices, probe
from mudpuppy.env.facts import TorchFacts
from tests.mudpuppy.env.recorded import machine


def lay_node(root: Path, number: int, target: int) -> None:
    node = root / "sys/class/kfd/kfd/topology/nodes" / str(number)
    node.mkdir(parents=True)
    (node / "properties").write_text(
        f"cpu_cores_count 16\ngfx_target_version {target}\nvendor_id 1\n"
    )


def lay_card(root: Path, slot: str, vendor: str, kind: str) -> None:
    card = root / "sys/bus/pci/devices" / slot
    card.mkdir(parents=True)
    (card / "vendor").write_text(vendor + "\n")
    (card / "class").write_text(kind + "\n")


def test_the_kernel_says_what_the_chips_are(tmp_path: Path):
    for number, target in enumerate((0, 110501, 90010, 100306)):
        lay_node(tmp_path, number, target)

    assert ("gfx1151", "gfx90a", "gfx1036") == probe.find_amd_gpus(tmp_path)


def test_without_the_driver_cards_are_found_on_the_bus(tmp_path: Path):
    lay_card(tmp_path, "0000:03:00.0", "0x1002", "0x030000")
    lay_card(tmp_path, "0000:03:00.1", "0x1002", "0x040300")  # its sound
    lay_card(tmp_path, "0000:04:00.0", "0x10de", "0x030200")
    facts = probe.collect(TorchFacts(version="2.13.0+cpu"), tmp_path)

    assert ("unknown",) == facts.amd_gpus
    assert 1 == facts.nvidia_gpus
    assert "missing" == facts.kfd


def test_versions_of_rocm_and_driver_are_read(tmp_path: Path):
    (tmp_path / "opt/rocm/.info").mkdir(parents=True)
    (tmp_path / "opt/rocm/.info/version").write_text("7.1.1-38\n")
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    (tmp_path / "sys/module/amdgpu/version").write_text("6.14.14\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    facts = probe.collect(TorchFacts(version="2.13.0+cpu"), tmp_path)

    assert ("7.1.1-38", "6.14.14", "open") == (facts.rocm, facts.driver, facts.kfd)


def test_no_other_variable_and_no_home_folder_gets_into_the_facts():
    home = str(Path.home())
    environment = {"HF_TOKEN": "hf_secret", "ROCM_PATH": f"{home}/rocm", "HSA_XNACK": "1"}

    chosen = probe.chosen_variables(environment)

    assert {"HSA_XNACK": "1", "ROCM_PATH": "~/rocm"} == chosen


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("raise OSError('libamdhip64')", "hip64"),
    ],
)
def test_a_torch_that_dies_is_a_fact(monkeypatch: pytest.MonkeyPatch, code: str, words: str):
    run = subprocess.run
    dying = [sys.executable, "-c", code]
    monkeypatch.setattr(probe.subprocess, "run", lambda _, **options: run(dying, **options))

    assert words in probe.ask_torch().error


def test_a_torch_that_hangs_is_a_fact(monkeypatch: pytest.MonkeyPatch):
    run = subprocess.run
    hanging = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(probe, "TORCH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(probe.subprocess, "run", lambda _, **options: run(hanging, **options))

    assert "no answer" in probe.ask_torch().error


def test_devices_are_described_as_the_driver_does(monkeypatch: pytest.MonkeyPatch):
    seen = SimpleNamespace(
        name="AMD Radeon RX 7900 XTX",
        gcnArchName="gfx1100:sramecc-:xnack-",
        total_memory=25753026560,
        major=11,
        minor=0,
        is_integrated=0,
    )
    monkeypatch.setattr(torch.version, "hip", "7.2.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx1100"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: seen)
    (device,) = devices.torch_facts().devices

    assert ("gfx1100", 25753026560, False) == (
        device.arch,
        device.total_bytes,
        device.is_integrated,
    )
    monkeypatch.setattr(torch.version, "hip", None)
    assert "sm_110" == devices.torch_facts().devices[0].arch


def test_a_driver_that_raises_is_told(monkeypatch: pytest.MonkeyPatch):
    def fail() -> bool:
        raise RuntimeError("HIP error: no device\nmore words")

    monkeypatch.setattr(torch.cuda, "is_available", fail)

    assert "HIP error: no device" == devices.torch_facts().error


def test_computing_finds_a_processor_right():
    assert {"ok"} == set(compute.compute_on("cpu").values())


def test_attention_that_gives_nan_is_off_by_infinity(monkeypatch: pytest.MonkeyPatch):
    real = torch.nn.functional.scaled_dot_product_attention

    def broken(q: torch.Tensor, *rest: torch.Tensor, is_causal: bool) -> torch.Tensor:
        found = real(q, *rest, is_causal=is_causal)
        return found if q.dtype == torch.float64 else found * float("nan")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)

    assert "attention is off by inf" == compute.compute_on("cpu")["bf16 attention"]


def test_a_device_that_crashes_is_a_result(monkeypatch: pytest.MonkeyPatch):
    run = subprocess.run
    dying = [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]
    monkeypatch.setattr(compute.subprocess, "run", lambda _, **options: run(dying, **options))
    facts = compute.compute_on_devices(machine("rx7900xtx"))

    assert "crashed with exit code -11: " == facts.devices[0].compute["all"]
