"""The choice of device and libraries is safe on every machine, and never changes a variable."""

import os
from dataclasses import replace

import pytest

from mudpuppy.env.choose import plan
from mudpuppy.env.facts import Facts
from mudpuppy.errors import ConfigError
from tests.mudpuppy.env.recorded import machine


def having(name: str, **variables: str) -> Facts:
    facts = machine(name)
    return replace(facts, variables={**facts.variables, **variables})


@pytest.mark.parametrize(
    ("name", "device", "rocblas", "flash_off"),
    [
        ("rx7900xtx", "cuda:0", True, False),
        ("rx7900xtx_igpu", "cuda:0", True, False),
        ("r9700_gfx1201", "cuda:0", True, False),
        ("strix_halo_gfx1151", "cuda:0", True, True),
        ("mi300x", "cuda:0", False, False),
        ("nvidia_h200", "cuda:0", False, False),
        ("cpu", "cpu", False, False),
        ("cpu_wheel_on_amd", "cpu", False, False),
    ],
)
def test_each_machine_gets_what_is_safe_there(
    name: str, device: str, rocblas: bool, flash_off: bool
):
    before = dict(os.environ)
    chosen = plan(machine(name), "auto")

    assert (device, rocblas, flash_off) == (
        chosen.device,
        chosen.prefer_rocblas,
        chosen.flash_off,
    )
    assert rocblas == ("blas" in chosen.choices)
    assert flash_off == ("attention" in chosen.choices)
    assert before == dict(os.environ)


@pytest.mark.parametrize("name", ["TORCH_BLAS_PREFER_HIPBLASLT", "DISABLE_ADDMM_HIP_LT"])
@pytest.mark.parametrize("value", ["0", "1"])
def test_who_chose_a_blas_library_keeps_it(name: str, value: str):
    chosen = plan(having("rx7900xtx", **{name: value}), "auto")

    assert not chosen.prefer_rocblas
    assert f"{name}={value} is set" == chosen.choices["blas"].reason


def test_the_integrated_gpu_is_passed_over_and_named():
    chosen = plan(machine("rx7900xtx_igpu"), "auto")

    assert "cuda:1 (gfx1036) is integrated and passed over" in chosen.choices["device"].reason
    assert "MP-T05, MP-T06" == chosen.choices["machine"].value


def test_the_first_of_several_is_said():
    assert "the first of 8" in plan(machine("mi300x"), "auto").choices["device"].reason


def test_an_integrated_gpu_that_comes_first_is_refused_with_what_to_type():
    facts = machine("rx7900xtx_igpu")
    first, second = (replace(one, index=1 - one.index) for one in facts.devices)
    turned = replace(facts, torch=replace(facts.torch, devices=(second, first)))

    with pytest.raises(ConfigError, match="MP-T05") as raised:
        plan(turned, "auto")
    assert raised.value.hint.startswith("HIP_VISIBLE_DEVICES=1 ")


def test_an_apu_alone_is_used():
    assert "cuda:0" == plan(machine("strix_halo_gfx1151"), "cuda").device


@pytest.mark.parametrize("name", ["seed_001_settings", "rx6700xt_no_kernels"])
def test_wrong_numbers_are_refused_on_a_gpu_and_not_on_the_processor(name: str):
    with pytest.raises(ConfigError, match=r"MP-T(08|11)"):
        plan(machine(name), "auto")

    assert "cpu" == plan(machine(name), "cpu").device


def test_spreading_over_an_integrated_gpu_is_refused():
    with pytest.raises(ConfigError, match="MP-T06"):
        plan(machine("rx7900xtx_igpu"), "auto", "auto")


def test_the_wrong_wheel_is_named_where_the_processor_is_used():
    assert "MP-T02" in plan(machine("cpu_wheel_on_amd"), "auto").choices["device"].reason
    with pytest.raises(ConfigError, match="MP-T02"):
        plan(machine("cpu_wheel_on_amd"), "cuda")


def test_a_variable_of_the_allocator_is_recorded_and_left():
    chosen = plan(having("mi300x", PYTORCH_HIP_ALLOC_CONF="max_split_size_mb:128"), "auto")

    assert "max_split_size_mb:128" == chosen.choices["allocator"].value
    assert "left as it is" in chosen.choices["allocator"].reason


def test_every_process_has_the_gpu_of_its_number():
    chosen = plan(machine("mi300x"), "auto", rank=3, size=8)

    assert "cuda:3" == chosen.device == chosen.choices["device"].value
    assert "each of 8 processes" in chosen.choices["device"].reason


@pytest.mark.parametrize("rank", [0, 1])
def test_an_integrated_gpu_of_any_process_is_refused_in_all(rank: int):
    with pytest.raises(ConfigError, match="MP-T05: cuda:1") as raised:
        plan(machine("rx7900xtx_igpu"), "auto", rank=rank, size=2)
    assert raised.value.hint.startswith("HIP_VISIBLE_DEVICES=0 torchrun --nproc_per_node 1 ")


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="9 processes"):
        plan(machine("mi300x"), "auto", rank=8, size=9)
    assert "cpu" == plan(machine("mi300x"), "cpu", rank=8, size=9).device
