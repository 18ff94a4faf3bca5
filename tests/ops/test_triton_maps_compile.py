"""The kernels for maps compile for GPUs that need not be here, as Triton specialises them at their first launch."""

import os
import re

import pytest

from tests.ops.test_triton_compile import spilled

POINTERS = {"mask": "*i1", "among": "*i1", "parents": "*i32", "counts": "*i32", "present": "*i8", "drawn": "*i8"}
POINTERS |= dict.fromkeys(("roots", "ranked", "draws", "corners", "keys", "chosen"), "*i64")
POINTERS |= dict.fromkeys(("rows", "columns", "inside"), "*i1") | {"where": "*i64", "numbers": "*u8", "top": "*u8"}
POINTERS |= dict.fromkeys(("directions", "factor", "chance", "share"), "*fp64")
CONSTANTS = {"PIXELS": 128, "CHUNK": 2048, "PARTS": 1024, "VALUES": 1024, "GROUP": 8, "DRAWS": 1024, "C": 19}
CONSTANTS |= {"BLOCK": 512}
ONE_WARP = ("start", "unite", "root", "direction")
KERNELS = (*ONE_WARP, "tally", "mine", "present", "half", "among", "distinct", "fit", "topmost")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("capability", "labels", "logits", "ones"),
    [
        (80, "*i64", "*fp32", False),
        (90, "*u8", "*bf16", False),
        (90, "*i32", "*fp64", True),  # sizes of 1 are constants to Triton
    ],
)
def test_compiles(name, capability, labels, logits, ones, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from selftrain_seg.ops.triton import maps

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(maps, f"{name}_kernel")
    constants = {key: value for key, value in CONSTANTS.items() if key in kernel.arg_names}
    if name == "direction":
        constants["PIXELS"] = 32
    signature = {key: (POINTERS | {"labels": labels, "logits": logits}).get(key, "i32") for key in kernel.arg_names}
    signature |= {"limit": "i64"} if "limit" in signature else {}
    if name in ("tally", "mine"):
        signature["columns"] = "i32"  # how many there are
    if ones:
        constants |= {key: 1 for key, kind in signature.items() if kind == "i32" and key not in constants}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(key),): constants[key] for key in constants})
    options = {"num_warps": 1 if name in ONE_WARP else 8 if name in ("half", "distinct") else 4}
    options["enable_fp_fusion"] = False
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    if name in (*ONE_WARP, "present", "among"):  # no thread waits for another warp
        assert "bar.sync" not in ptx
    atomics = re.findall(r"(?:^|\s)(?:atom|red)\.[\w.]+", ptx)
    assert bool(atomics) == (name == "unite")
    assert spilled(triton, compiled.asm["cubin"], tmp_path) == 0
