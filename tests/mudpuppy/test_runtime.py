"""Device and precision are chosen with a reason, and a device that computes wrongly is refused."""

import os
from collections.abc import Iterator

import pytest
import torch

from mudpuppy import runtime
from mudpuppy.config_check import load_config
from mudpuppy.env.choose import Plan
from mudpuppy.errors import ConfigError, EngineError
from tests.mudpuppy.env.recorded import machine

LEAST = {"model": "tiny", "dataset": "d.jsonl", "output": "out"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_device_that_computes_rightly_is_chosen_with_reasons(precision: str):
    chosen = runtime.choose_runtime(load_config({**LEAST, "precision": precision, "device": "cpu"}))

    assert runtime.DTYPES[precision] is chosen.dtype
    assert "asked for" == chosen.choices["device"].reason
    assert "of fp32" in chosen.choices["precision"].reason


def test_a_device_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "measure_matmul_error", lambda device, precision: 0.5)

    with pytest.raises(EngineError, match=r"bf16 matrix product on cpu is off by 0.5"):
        runtime.choose_runtime(load_config({**LEAST, "device": "cpu"}))


@pytest.mark.parametrize(("precision", "is_advised"), [("fp32", False), ("bf16", True)])
def test_the_precision_that_failed_is_not_advised(
    monkeypatch: pytest.MonkeyPatch, precision: str, is_advised: bool
):
    monkeypatch.setattr(runtime, "measure_matmul_error", lambda device, precision: 0.5)

    with pytest.raises(EngineError) as raised:
        runtime.choose_runtime(load_config({**LEAST, "precision": precision, "device": "cpu"}))
    assert is_advised == ("--precision fp32" in raised.value.hint)
    assert raised.value.hint


@pytest.fixture
def gpu_with_tf32_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A GPU that is chosen, and whose products are as inexact as TF32's."""
    for name in runtime.TF32_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime, "machine_facts", lambda _: None)
    monkeypatch.setattr(runtime, "plan", lambda *_, **__: Plan(device="cuda:0"))
    monkeypatch.setattr(runtime, "list_devices", list)
    monkeypatch.setattr(runtime, "measure_matmul_error", lambda device, precision: 3e-4)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield monkeypatch
    torch.backends.cuda.matmul.allow_tf32 = before


def test_an_error_of_tf32_is_refused_where_nothing_asks_for_it(
    gpu_with_tf32_off: pytest.MonkeyPatch,
):
    with pytest.raises(EngineError, match=r"off by 0\.0003") as raised:
        runtime.choose_runtime(load_config({**LEAST, "precision": "fp32"}))
    assert "--device cpu to compare" == raised.value.hint
    gpu_with_tf32_off.setattr(torch.version, "hip", None)
    gpu_with_tf32_off.setenv("HIPBLASLT_ALLOW_TF32", "1")  # says nothing to a build for CUDA
    assert "" == runtime.find_tf32(torch.device("cuda", 0))


@pytest.mark.parametrize("switch", [*runtime.TF32_VARIABLES, "torch.backends.cuda.matmul"])
def test_tf32_is_named_and_its_error_allowed(gpu_with_tf32_off: pytest.MonkeyPatch, switch: str):
    if switch in runtime.TF32_VARIABLES:
        gpu_with_tf32_off.setenv(switch, "1")
        gpu_with_tf32_off.setattr(torch.version, "hip", "7.2")
    else:
        torch.backends.cuda.matmul.allow_tf32 = True
    chosen = runtime.choose_runtime(load_config({**LEAST, "precision": "fp32"}))

    assert f"TF32 is allowed by {switch}, " in chosen.choices["precision"].reason
    gpu_with_tf32_off.setattr(runtime, "measure_matmul_error", lambda device, precision: 3e-3)
    with pytest.raises(EngineError, match=r"more than 0\.002"):
        runtime.choose_runtime(load_config({**LEAST, "precision": "fp32"}))


def test_the_probe_sees_a_product_of_the_wrong_precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(runtime.DTYPES, "fp32", torch.bfloat16)

    assert runtime.measure_matmul_error(torch.device("cpu"), "fp32") > 1e-4


def test_streaming_in_fp16_is_refused_on_a_gpu_and_not_on_a_cpu():
    config = load_config({**LEAST, "method": "full", "stream": True, "precision": "fp16"})

    runtime.refuse_unproven(config, torch.device("cpu"))
    with pytest.raises(ConfigError, match="not proven on cuda:0"):
        runtime.refuse_unproven(config, torch.device("cuda", 0))


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_streaming_by_several_processes_is_refused(device, monkeypatch):
    config = load_config({**LEAST, "method": "full", "stream": True})
    runtime.refuse_unproven(config, torch.device(device))

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--stream is for one process, and 2 train"):
        runtime.refuse_unproven(config, torch.device(device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_what_to_look_at():
    with pytest.raises(ConfigError, match="sees no GPU"):
        runtime.choose_runtime(load_config({**LEAST, "device": "cuda"}))


def test_torch_is_told_of_the_libraries_and_the_environment_is_not_touched():
    flash, blas = (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.preferred_blas_library(),
    )
    before = dict(os.environ)
    try:
        runtime.switch_libraries(Plan(device="cuda:0", prefer_rocblas=True, flash_off=True))

        assert not torch.backends.cuda.flash_sdp_enabled()
        assert torch._C._BlasBackend.Cublas == torch.backends.cuda.preferred_blas_library()
        assert before == dict(os.environ)
    finally:
        torch.backends.cuda.enable_flash_sdp(flash)
        torch.backends.cuda.preferred_blas_library(blas)


def test_what_the_machine_asks_for_is_among_the_choices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "machine_facts", lambda _: machine("cpu_wheel_on_amd"))
    chosen = runtime.choose_runtime(load_config({**LEAST, "precision": "fp32"}))

    assert "MP-T02" in chosen.choices["device"].reason
