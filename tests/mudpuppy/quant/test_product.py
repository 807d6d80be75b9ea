"""Products made tile by tile are those with the dense weight, whatever comes in."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.quant import product
from mudpuppy.quant.formats import FORMATS, Packed
from mudpuppy.quant.product import packed_linear

every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
NF4 = FORMATS["nf4"]


def packed_matrix(form, rows, columns, block=None, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return form.quantise(weight, block)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of a few rows or columns."""
    monkeypatch.setattr(product, "TILE_BYTES", 4096)
    monkeypatch.setattr(product, "WHOLE_BYTES", 0)
    monkeypatch.setattr(product, "MIN_TILE", 1)


def both(x, packed, form, bias=None, compute=torch.float32):
    """Output and gradient of the tiles, and those of the dense weight."""
    weight = form.dequantise(packed, compute).to(x.dtype)
    made = []
    for run in (
        lambda x: packed_linear(x, packed, form, bias, compute),
        lambda x: torch.nn.functional.linear(x, weight, bias),
    ):
        leaf = x.detach().clone().requires_grad_(True)
        y = run(leaf)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
        made.append((y.detach(), leaf.grad))
    return made


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_tiles_give_the_product_with_the_dense_weight(form, dtype, bias, small_tiles):
    packed = packed_matrix(form, 150, 203)
    x = torch.randn(6, 203).to(dtype)
    added = torch.randn(150).to(dtype) if bias else None
    (y, grad), (wanted, wanted_grad) = both(x, packed, form, added)
    eps = torch.finfo(dtype).eps
    assert y.dtype == grad.dtype == dtype
    # sums in another order differ in the last places, and are rounded once all the same
    assert float((y - wanted).norm()) <= 2 * eps * float(wanted.norm())
    assert float((grad - wanted_grad).norm()) <= 2 * eps * float(wanted_grad.norm())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 90),
    block=st.sampled_from([1, 3, 16, 64]),
    lead=st.sampled_from([(), (0,), (1,), (5,), (2, 3), (2, 0, 3)]),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, columns, block, lead, seed):
    packed = packed_matrix(NF4, rows, columns, block, seed)
    x = torch.randn(*lead, columns, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "TILE_BYTES", 512)
        patch.setattr(product, "WHOLE_BYTES", 0)
        patch.setattr(product, "MIN_TILE", 1)
        (y, grad), (wanted, wanted_grad) = both(x, packed, NF4)
    assert y.shape == (*lead, rows)
    assert torch.allclose(y, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(grad, wanted_grad, rtol=0, atol=1e-12)


def test_the_weight_is_rounded_to_the_type_it_computes_in_first(small_tiles):
    packed = packed_matrix(NF4, 20, 64)
    x = torch.randn(3, 64)
    (y, grad), (wanted, wanted_grad) = both(x, packed, NF4, compute=torch.float16)
    assert torch.allclose(y, wanted, rtol=1e-5, atol=1e-5)
    assert torch.allclose(grad, wanted_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turn", [lambda x: x.t(), lambda x: x[::2], lambda x: x[:, ::2]])
def test_an_input_that_is_not_contiguous(turn, small_tiles):
    x = turn(torch.randn(64, 64))
    packed = packed_matrix(NF4, 20, x.shape[1])
    (y, _), (wanted, _) = both(x, packed, NF4)
    assert torch.allclose(y, wanted, rtol=0, atol=1e-4)


def test_the_product_can_be_differentiated_twice(small_tiles):
    packed = packed_matrix(NF4, 9, 33)
    x = torch.randn(4, 33, dtype=torch.float64, requires_grad=True)

    def run(x):
        return packed_linear(x, packed, NF4, None, torch.float32).tanh()

    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


def test_only_packed_tensors_are_kept_and_only_a_tile_is_made(small_tiles):
    """The peak of live bytes beside in- and output is a tile and its workspace, not the weight."""
    packed = packed_matrix(NF4, 512, 512)
    x = torch.randn(4, 512, requires_grad=True)
    kept: list[int] = []
    largest: list[int] = []
    original = product.borrowed

    def borrowed(size, like):
        largest.append(size)
        return original(size, like)

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "borrowed", borrowed)
        patch.setattr(product, "room", lambda rows, columns: 0)
        patch.setattr("mudpuppy.quant.formats.interface.Format.dequantise_into", no_weight)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = packed_linear(x, packed, NF4, None, torch.float32)
        y.sum().backward()
    assert sum(kept) == packed.qweight.nbytes + packed.scales.nbytes
    # one unit of columns, 64 of them, is the least that the backward pass can take
    assert max(largest) <= 64 * 512 * 4 + 64
    assert len(largest) == 2


def no_weight(self, packed, out, **_):
    out.zero_()


def test_threads_that_share_a_layer_do_not_disturb_each_other(small_tiles):
    packed = packed_matrix(NF4, 64, 128)
    weight = NF4.dequantise(packed)
    wrong = []

    def work(seed):
        x = torch.randn(5, 128, generator=torch.Generator().manual_seed(seed))
        for _ in range(20):
            y = packed_linear(x, packed, NF4, None, torch.float32)
            wrong.append(float((y - x @ weight.t()).abs().max()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80
    assert max(wrong) < 1e-3


def test_a_hook_may_use_another_layer_in_the_middle(small_tiles):
    """The gradient of one product is asked for while another one runs."""
    first, second = packed_matrix(NF4, 40, 30), packed_matrix(NF4, 30, 40, seed=1)
    x = torch.randn(3, 30, requires_grad=True)
    y = packed_linear(x, first, NF4, None, torch.float32)
    seen = []
    y.register_hook(lambda g: seen.append(packed_linear(g, second, NF4, None, torch.float32)))
    y.sum().backward()
    dense = NF4.dequantise(first), NF4.dequantise(second)
    assert torch.allclose(seen[0], torch.ones(3, 40) @ dense[1].t(), atol=1e-4)
    assert torch.allclose(x.grad, torch.ones(3, 40) @ dense[0], atol=1e-4)


def test_whole_numbers_are_refused():
    packed = packed_matrix(NF4, 4, 8)
    with pytest.raises(TypeError, match=r"takes floating numbers, not torch\.int64"):
        packed_linear(torch.ones(2, 8, dtype=torch.long), packed, NF4, None, torch.float32)


def test_it_is_one_operation_of_torchs_library():
    packed = packed_matrix(NF4, 12, 16)
    words = (torch.randn(3, 16), *packed[:2], None, "nf4", 16, 64, torch.float32, False)
    torch.library.opcheck(product._packed_product, words)
    turned = (torch.randn(2, 3, 12), *words[1:-1], True)
    torch.library.opcheck(product._packed_product, turned)


def test_an_empty_layer_of_packed_zeros_gives_zeros():
    packed = Packed(torch.full((3, 2), 0x77, dtype=torch.uint8), torch.zeros(3, 1).bfloat16(), 4, 4)
    y = packed_linear(torch.randn(2, 4), packed, NF4, None, torch.float32)
    assert not y.any()


@pytest.mark.parametrize("shape", [(64, 64), (4096, 512), (2048, 2100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_borrowed_is_about_what_is_predicted(shape, dtype, monkeypatch):
    sizes: list[int] = []
    original = product.borrowed
    monkeypatch.setattr(
        product, "borrowed", lambda size, like: (sizes.append(size), original(size, like))[1]
    )
    packed = packed_matrix(NF4, *shape)
    x = torch.randn(2, shape[1], dtype=dtype, requires_grad=True)
    packed_linear(x, packed, NF4, None, dtype).sum().backward()
    said = product.workspace_bytes(shape[0] * shape[1], dtype.itemsize, on_cpu=True)
    assert len(sizes) == 2
    assert 0.5 * said < max(sizes) < 1.3 * said + 1024
