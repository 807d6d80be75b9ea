"""Every trap is seen on a machine that is in it, and on no other."""

from dataclasses import replace
from pathlib import Path

import pytest

from mudpuppy.env.facts import Facts
from mudpuppy.env.traps import TRAPS, fp8_support, judge, refuse_device_map
from mudpuppy.errors import ConfigError
from tests.mudpuppy.env.recorded import NAMES, machine

EXPECTED = {
    "broken_driver": {"MP-T01": "blocks"},
    "cpu": {},
    "cpu_wheel_on_amd": {"MP-T02": "blocks"},
    "cuda_wheel_on_amd": {"MP-T02": "blocks"},
    "mi300x": {},
    "no_permission": {"MP-T03": "blocks"},
    "nvidia_h200": {},
    "r9700_gfx1201": {"MP-T14": "warns", "MP-T15": "note"},
    "rx6700xt_no_kernels": {"MP-T08": "blocks", "MP-T15": "note", "MP-T19": "note"},
    "rx6800_gfx1030": {"MP-T15": "note", "MP-T19": "note"},
    "rx7900xtx": {"MP-T15": "note"},
    "rx7900xtx_igpu": {"MP-T05": "warns", "MP-T06": "warns", "MP-T15": "note"},
    "seed_001_settings": {
        "MP-T11": "blocks",
        "MP-T05": "warns",
        "MP-T06": "warns",
        "MP-T12": "warns",
        "MP-T15": "note",
        "MP-T20": "note",
    },
    "strix_halo_gfx1151": {"MP-T16": "warns", "MP-T15": "note"},
    "strix_halo_seed_003": {
        "MP-T07": "warns",
        "MP-T17": "warns",
        "MP-T10": "note",
        "MP-T15": "note",
    },
}


def codes(facts: Facts) -> dict[str, str]:
    return {one.code: one.severity for one in judge(facts)}


def having(name: str, **variables: str) -> Facts:
    facts = machine(name)
    return replace(facts, variables={**facts.variables, **variables})


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_is_in_its_traps_and_in_no_others(name: str):
    assert EXPECTED[name] == codes(machine(name))


@pytest.mark.parametrize(
    ("name", "variables", "code", "severity"),
    [
        ("mi300x", {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0,1"}, "MP-T04", "blocks"),
        ("mi300x", {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, "MP-T04", "warns"),
        ("mi300x", {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, "MP-T04", "warns"),
        ("rx7900xtx", {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}, "MP-T07", "warns"),
        ("rx7900xtx", {"HSA_OVERRIDE_GFX_VERSION": "gfx1100"}, "MP-T07", "blocks"),
        (
            "mi300x",
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:64"},
            "MP-T11",
            "blocks",
        ),
        (
            "mi300x",
            {"PYTORCH_CUDA_ALLOC_CONF": "", "PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:64"},
            "MP-T13",
            "warns",
        ),
        ("r9700_gfx1201", {"TORCH_BLAS_PREFER_HIPBLASLT": "1"}, "MP-T14", "warns"),
        ("rx7900xtx", {"TORCH_BLAS_PREFER_HIPBLASLT": "1"}, "MP-T15", "warns"),
        ("mi300x", {"TORCH_BLAS_PREFER_HIPBLASLT": "0"}, "MP-T15", "note"),
        ("rx7900xtx", {"BNB_CUDA_VERSION": "128"}, "MP-T18", "warns"),
        ("mi300x", {"HIPBLASLT_ALLOW_TF32": "1"}, "MP-T20", "warns"),
        ("rx7900xtx", {"PYTORCH_NO_HIP_MEMORY_CACHING": "1"}, "MP-T21", "note"),
        ("nvidia_h200", {"CUDA_LAUNCH_BLOCKING": "1"}, "MP-T10", "note"),
    ],
)
def test_a_variable_leads_into_a_trap(
    name: str, variables: dict[str, str], code: str, severity: str
):
    assert severity == codes(having(name, **variables)).get(code)


@pytest.mark.parametrize(
    ("name", "variables", "code"),
    [
        ("mi300x", {"HIP_VISIBLE_DEVICES": "0,1"}, "MP-T04"),
        ("mi300x", {"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "0"}, "MP-T04"),
        ("rx7900xtx", {"HSA_OVERRIDE_GFX_VERSION": "11.0.0"}, "MP-T07"),
        ("mi300x", {"PYTORCH_HIP_ALLOC_CONF": "expandable_segments:True"}, "MP-T11"),
        ("mi300x", {"PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:128"}, "MP-T11"),
        ("mi300x", {"PYTORCH_HIP_ALLOC_CONF": "expandable_segments:True"}, "MP-T12"),
        (
            "nvidia_h200",
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:64"},
            "MP-T11",
        ),
        ("r9700_gfx1201", {"PYTORCH_NO_HIP_MEMORY_CACHING": "1"}, "MP-T21"),
    ],
)
def test_a_harmless_variable_does_not(name: str, variables: dict[str, str], code: str):
    assert code not in codes(having(name, **variables))


def test_the_pair_counts_only_in_the_variable_that_the_allocator_reads():
    pair = "expandable_segments:True,max_split_size_mb:64"
    hidden = having("mi300x", PYTORCH_CUDA_ALLOC_CONF="", PYTORCH_HIP_ALLOC_CONF=pair)

    assert "MP-T11" not in codes(hidden)
    assert "MP-T13" in codes(hidden)


def test_a_device_that_computes_wrongly_blocks():
    facts = machine("mi300x")
    wrong = replace(facts.devices[0], compute={"fp32": "ok", "bf16": "a product is off by 0.7"})
    found = judge(replace(facts, torch=replace(facts.torch, devices=(wrong,))))

    assert [("MP-T09", "blocks")] == [(one.code, one.severity) for one in found]
    assert "bf16: a product is off by 0.7" in found[0].what


def test_mixed_discrete_devices_are_told_of():
    facts = machine("rx7900xtx")
    other = replace(machine("r9700_gfx1201").devices[0], index=1)
    two = replace(facts.torch, devices=(*facts.devices, other))

    assert "warns" == codes(replace(facts, torch=two))["MP-T06"]


def test_codes_are_unique_and_every_trap_was_sprung_here():
    listed = [trap.code for trap in TRAPS]

    assert sorted(set(listed)) == listed
    seen = {code for name in NAMES for code in EXPECTED[name]}
    assert {f"MP-T{n:02}" for n in (4, 9, 13, 18, 21)} == set(listed) - seen


def test_the_worst_comes_first():
    severities = [one.severity for one in judge(machine("seed_001_settings"))]

    assert sorted(severities, key=["blocks", "warns", "note"].index) == severities


@pytest.mark.parametrize("device_map", ["auto", "pipeline"])
def test_spreading_over_an_integrated_gpu_is_refused(device_map: str):
    with pytest.raises(ConfigError, match=r"MP-T06.*gfx1036") as raised:
        refuse_device_map(machine("rx7900xtx_igpu"), device_map)

    assert "HIP_VISIBLE_DEVICES=0 " in raised.value.hint


def test_the_advice_counts_as_the_variable_that_is_set_already():
    with pytest.raises(ConfigError) as raised:
        refuse_device_map(having("rx7900xtx_igpu", HIP_VISIBLE_DEVICES="2,0"), "auto")

    assert "HIP_VISIBLE_DEVICES=2 " in raised.value.hint


@pytest.mark.parametrize(
    ("name", "device_map"),
    [("rx7900xtx_igpu", "cpu"), ("rx7900xtx_igpu", None), ("mi300x", "auto"), ("cpu", "auto")],
)
def test_spreading_over_nothing_dangerous_is_not(name: str, device_map: str | None):
    refuse_device_map(machine(name), device_map)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mi300x", ("hardware", "FNUZ")),
        ("r9700_gfx1201", ("hardware", "OCP")),
        ("nvidia_h200", ("hardware", "sm_90")),
        ("rx7900xtx", ("emulated", "gfx1100")),
        ("cpu", ("emulated", "no GPU")),
    ],
)
def test_fp8_is_in_hardware_where_there_are_units(name: str, expected: tuple[str, str]):
    how, why = fp8_support(machine(name))

    assert expected[0] == how
    assert expected[1] in why


def test_the_page_about_rocm_names_every_trap():
    page = (Path(__file__).parents[3] / "docs/rocm.md").read_text(encoding="utf-8")

    for trap in TRAPS:
        assert f"| {trap.code} {trap.name} |" in page
        assert all(source in page for source in trap.sources), trap.code
