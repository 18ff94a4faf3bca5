"""The kernels compile for GPUs that need not be here, as Triton specialises them at their first launch."""

import os

import pytest

DTYPES = dict.fromkeys(("labels", "predicted", "counts"), "*i64")
DTYPES |= dict.fromkeys(("bar", "gain", "confidence", "log_confidence"), "*fp32")
DTYPES |= dict.fromkeys(("first_bin", "bins_per_unit"), "fp32")
LAYOUTS = {"contiguous": {"stride_w": 1, "height": 1}, "channels_last": {"stride_c": 1, "height": 1}, "strided": {}}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("kernel", ["top_kernel", "count_kernel", "hard_kernel", "reweighted_kernel"])
@pytest.mark.parametrize(
    ("capability", "dtype", "classes", "layout"),
    [
        (80, "fp32", 19, "contiguous"),
        (90, "bf16", 19, "channels_last"),
        (90, "fp16", 200, "strided"),
        (90, "fp32", 1, "contiguous"),
    ],
)
def test_compiles(kernel, capability, dtype, classes, layout, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from selftrain_seg.kernels import _triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(_triton, kernel)
    padded = 1 << (classes - 1).bit_length()
    pixels = min(256, 4096 // padded)
    constants = {"C": classes, "TILE_C": padded, "PIXELS": pixels, "BINS": 16384, "GROUP": min(32, pixels)}
    constants = {name: value for name, value in (constants | LAYOUTS[layout]).items() if name in kernel.arg_names}
    # Sizes and strides that are 1 are constants to Triton; those from 2^31 on are 64 bits wide.
    integers = "i64" if layout == "strided" else "i32"
    signature = {name: DTYPES.get(name, integers) for name in kernel.arg_names} | {"logits": f"*{dtype}"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): constants[name] for name in constants})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    assert compiled.asm["cubin"]
    # Counts are added up in a group of pixels first, by an atomic that returns nothing.
    assert ("red.global" in compiled.asm["ptx"]) == ("counts" in signature)
