"""The kernels compile for GPUs that need not be here, as Triton specialises them at their first launch."""

import math
import os
import re
import subprocess

import pytest

DTYPES = dict.fromkeys(("labels", "predicted", "counts", "target"), "*i64") | {"valid": "*i1"}
DTYPES |= dict.fromkeys(("bar", "gain", "confidence", "log_confidence", "soft"), "*fp32")
DTYPES |= dict.fromkeys(("nll", "kld", "entropy", "square", "ignored_entropy"), "*fp32")
DTYPES |= dict.fromkeys(("first_bin", "bins_per_unit", "sharpness"), "fp32")
STRIDED = ("stride", "target", "soft", "result")
LAYOUTS = {"contiguous": {"height": 1}, "channels_last": {"height": 1}, "strided": {}}
LAYOUTS["contiguous"] |= {f"{name}_w": 1 for name in STRIDED}
LAYOUTS["channels_last"] |= {f"{name}_c": 1 for name in STRIDED}
GUIDED = {"entropy": None, "square": None}  # what cross entropy with IAST's regularisers leaves out


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("top", {}),
        ("count", {}),
        ("hard", {}),
        ("reweighted", {}),
        ("soft", {}),
        ("maps", {"SOFT": False, **GUIDED}),
        ("maps", {"SOFT": True, "ignored_entropy": None}),
        ("gradient", {"SOFT": False, **GUIDED, "nll_step": 1}),
        ("gradient", {"SOFT": True, "ignored_entropy": None}),
    ],
)
@pytest.mark.parametrize(
    ("capability", "dtype", "classes", "layout"),
    [
        (80, "fp32", 19, "contiguous"),
        (90, "bf16", 19, "channels_last"),
        (90, "fp16", 200, "strided"),
    ],
)
def test_compiles(name, options, capability, dtype, classes, layout, tmp_path, monkeypatch):
    compile_and_look(name, options, capability, dtype, classes, layout, tmp_path, monkeypatch)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(
    ("name", "options"), [("count", {}), ("soft", {}), ("maps", {"SOFT": True}), ("gradient", {"SOFT": True})]
)
def test_compiles_for_one_class(name, options, tmp_path, monkeypatch):
    compile_and_look(name, options, 90, "fp32", 1, "contiguous", tmp_path, monkeypatch)


def compile_and_look(name, options, capability, dtype, classes, layout, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from selftrain_seg.kernels import _losses, _selection

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(_losses if name in ("maps", "gradient") else _selection, f"{name}_kernel")
    padded = 1 << (classes - 1).bit_length()
    pixels = min(256, 4096 // padded)
    constants = {"C": classes, "TILE_C": padded, "PIXELS": pixels, "BINS": 16384, "GROUP": min(32, pixels)}
    constants |= {"DENSE": layout == "channels_last"} | LAYOUTS[layout] | options
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    # Sizes and strides that are 1 are constants to Triton; those from 2^31 on are 64 bits wide.
    integers = "i64" if layout == "strided" else "i32"
    signature = {name: DTYPES.get(name, integers) for name in kernel.arg_names} | {"logits": f"*{dtype}"}
    signature |= {"result": f"*{dtype}"} if "result" in signature else {}
    signature |= {"target": "*fp32"} if options.get("SOFT") else {}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): constants[name] for name in constants})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    ptx = compiled.asm["ptx"]
    # Counts are added up in a group of pixels first, by an atomic that returns nothing.
    assert ("red.global" in ptx) == (name == "count")
    if layout == "channels_last":  # a thread has all classes of its pixels, so none is asked of another
        assert "shfl" not in ptx
    if classes > 1:
        loads = re.findall(r"= tt\.load .*tensor<([\dx]+)x!tt\.ptr", compiled.asm["ttir"])
        tiles = [shape for shape in loads if math.prod(map(int, shape.split("x"))) == padded * pixels]
        assert len(tiles) == (2 if options.get("SOFT") else 1)  # logits, and soft labels, are read once
    assert spilled(triton, compiled.asm["cubin"], tmp_path) == 0


def spilled(triton, cubin, folder):
    """Bytes a thread keeps in memory for want of registers."""
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", folder / "kernel.cubin"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.search(r"STACK:(\d+) .*LOCAL:(\d+)", usage).groups()))
