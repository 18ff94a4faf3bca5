"""The kernels compile for GPUs that need not be here, as Triton specialises them at their first launch.

What is held is what matters on a GPU, not how one compiler writes it: no registers in memory, logits read once, no
exchange between threads before the final sum, and counts that go to memory once a group.
"""

import os
import re
import subprocess

import pytest

POINTERS = dict.fromkeys(("labels", "predicted", "counts", "target", "chosen"), "*i64")
POINTERS |= {
    "valid": "*i1",
    "mask": "*i1",
    "is_pseudo": "*i1",
    "thresholds": "*fp64",
    "alpha": "*fp64",
    "relative_to": "*fp64",
    "divisor": "*i64",
}
FLOATS = (
    "score confidence peaks partial soft pixel_weight image_weight class_weight exponent loss largest log_total kept "
    "scales scale grad weight confidence norm slope"
)
POINTERS |= dict.fromkeys(FLOATS.split(), "*fp32")
FACTORS = (
    "first_bin bins_per_unit floor sharpness factor_nll factor_reg factor_rest factor chance gamma_agree gamma_disagree"
)
NUMBERS = dict.fromkeys(FACTORS.split(), "fp32")
STRIDED = ("stride", "target", "soft", "result", "probs")
LAYOUTS = {
    "contiguous": {"height": 1} | {f"{name}_w": 1 for name in STRIDED},
    "channels_last": {"height": 1} | {f"{name}_c": 1 for name in STRIDED},
    "strided": {},
}
LAYOUTS["aligned"] = LAYOUTS["contiguous"]  # and every size and address a multiple of 16, as those of most networks


def without(options, *names):
    return {key: value for key, value in options.items() if key not in names}


PLAIN = dict.fromkeys(("pixel_weight", "image_weight", "class_weight", "exponent"))
MRKLD = {**PLAIN, "loss": None, "kept": None, "SOFT": False, "REGULARISER": 1, "REST": False}
GUIDED = {**MRKLD, "REST": True}
del GUIDED["kept"]
DYNAMIC = {**MRKLD, "REGULARISER": 0, "exponent_b": 1, "exponent_p": 0}
del DYNAMIC["exponent"]
SOFT = {**MRKLD, "SOFT": True, "REGULARISER": 0}
EVERYTHING = {"loss": None, "SOFT": False, "REGULARISER": 3, "REST": True}
OBSERVE = {"valid": None, "MOMENTS": False, "PROBS": False, "COUNTS": False, "SIZE": 0, "relative_to": None}
OBSERVE |= dict.fromkeys(("partial", "peaks"))
SUMS = without(OBSERVE, "valid", "partial")
KERNELS = {
    "read": {"LOG": False},
    "read, log": {"LOG": True},
    "observe": OBSERVE,
    "observe, freematch": SUMS | {"MOMENTS": True, "PROBS": True, "COUNTS": True, "SIZE": 42},
    "observe, flexmatch": SUMS | {"COUNTS": True, "SIZE": 21},
    "observe, softmatch": SUMS | {"MOMENTS": True, "SIZE": 3},
    "observe, aligned": without(SUMS, "relative_to") | {"MOMENTS": True, "SIZE": 3},
    "observe, running": without(SUMS, "peaks") | {"PROBS": True, "SIZE": 20},
    "count": {"valid": None},
    "select, hard": {"valid": None, "REWEIGHTED": False},
    "select, fixed": {"valid": None, "thresholds": None, "REWEIGHTED": False},
    "select, reweighted": {"valid": None, "REWEIGHTED": True},
    "soft": {"valid": None},
    "forward, mrkld": MRKLD,
    "forward, region-guided": GUIDED,
    "forward, dynamic": DYNAMIC,
    "forward, soft": SOFT,
    "forward, everything": EVERYTHING,
    "backward, mrkld": {**MRKLD, "grad_p": 0},
    "backward, region-guided": {**GUIDED, "grad_p": 0},
    "backward, dynamic": {**DYNAMIC, "grad_p": 1},
    "backward, soft": {**SOFT, "grad_p": 0},
    "backward, everything": EVERYTHING,
    "mutual_forward": {"is_pseudo": None, "loss": None, "FLIP": False},
    "mutual_forward, everything": {"loss": None, "FLIP": True},
    "fairness_forward": {},
    "fairness_backward": {},
    "negative_forward": {"pixel_weight": None, "loss": None},
    "negative_backward": {"pixel_weight": None, "grad_p": 0},
}
# How often the logits are read, if not once a class: sums of p and weights need the largest first, in a loop;
# the weight of a pixel by its belief needs the label's own logit.
FEW = 64  # pixels of a program that adds up over them
LOADS = {
    "observe, freematch": lambda classes: classes + 1,
    "observe, running": lambda classes: classes + 1,
    "soft": lambda classes: classes + 2,
    "backward, dynamic": lambda classes: classes + 1,
    "backward, everything": lambda classes: classes + 1,
    "negative_forward": lambda classes: 2 * classes,  # the teacher's probabilities, too
    "negative_backward": lambda classes: 2 * classes,
    "fairness_forward": lambda classes: 2 * classes,  # class sums need the largest first, gradients their mean
}
WIDE = ("forward", "backward", "mutual_forward", "negative_forward", "negative_backward", "fairness_backward")
SHARED = (*WIDE, "fairness_forward", "read", "select", "soft")  # by several lanes


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("capability", "dtype", "classes", "layout"),
    [
        (80, "fp32", 19, "contiguous"),
        (90, "bf16", 19, "channels_last"),
        (90, "bf16", 19, "aligned"),
        (90, "bf16", 2, "contiguous"),
        (90, "bf16", 2, "channels_last"),
        (80, "bf16", 150, "channels_last"),
        (90, "bf16", 150, "contiguous"),
        (90, "fp16", 19, "strided"),
    ],
)
def test_compiles(name, capability, dtype, classes, layout, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    compiled = compile_kernel(triton, name, capability, dtype, classes, layout, tmp_path, monkeypatch)
    ptx = compiled.asm["ptx"]
    # One reduction at the end, if any: counting compares the pixels of a group, sums cross the threads.
    short = name.split(",")[0]
    adds_up = short.endswith("forward") and short != "fairness_forward"
    in_one_warp = name.startswith("observe,") or short == "fairness_forward"
    if not adds_up and not in_one_warp and name != "count":
        assert "bar.sync" not in ptx
        assert "shfl" not in ptx or lanes_of(short, classes, layout) > 1
    if in_one_warp:  # it adds up by itself
        assert "bar.sync" not in ptx
    if adds_up:  # from the first reduction on nothing is read
        before, _, after = ptx.partition("bar.sync")
        assert "ld.global" in before
        assert "ld.global" not in after
    # An atomic whose old value nobody takes is a reduction, however the compiler spells it.
    atomics = re.findall(r"(?:^|\s)(?:atom|red)\.[\w.]+", ptx)
    assert bool(atomics) == (name == "count")
    if layout == "aligned":  # a warp's loads and stores are as wide as a sector, or wider
        narrow = re.findall(r"\b(?:ld|st)\.global\.b16", ptx)  # masks, and logits that labels point to
        assert len(narrow) < classes
    if dtype == "bf16":  # of which nothing but the logits is
        loads = re.findall(r"tt\.load %\S+.*: tensor<\d+x!tt\.ptr<bf16>>", compiled.asm["ttir"])
        rounds = -(-chunk_of(classes) // lanes_of(short, classes, layout))
        if name == "fairness_backward":  # the mean first; the compiler sees that nothing was stored before class 0
            rounds = 2 * rounds - (classes <= 64)
        # Two of the soft kernel's loops may have a single turn, and the compiler sees that it is the first one's.
        rounds -= name == "soft" and rounds == 1
        assert len(loads) == LOADS.get(name, lambda classes: classes)(rounds)
    assert spilled(triton, compiled.asm["cubin"], tmp_path) == 0


def lanes_of(short, classes, layout):
    """How many neighbours share a pixel."""
    return min(4, classes) if short in SHARED and layout == "channels_last" else 1


def chunk_of(classes):
    """As many classes are unrolled; of more than 64 a loop takes so many at a time."""
    return classes if classes <= 64 else 8


def compile_kernel(triton, name, capability, dtype, classes, layout, folder, monkeypatch):
    from selftrain_seg.ops._thresholds import LARGE, SLACK
    from selftrain_seg.ops.observing import LEAST
    from selftrain_seg.ops.triton import fairness, loss, mutual, negative, reading

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    short, options = name.split(",")[0], KERNELS[name]
    homes = {"forward": loss, "backward": loss, "mutual_forward": mutual}
    homes |= dict.fromkeys(("negative_forward", "negative_backward"), negative)
    homes |= dict.fromkeys(("fairness_forward", "fairness_backward"), fairness)
    kernel = getattr(homes.get(short, reading), f"{short}_kernel")
    wide = short in WIDE and layout in ("contiguous", "aligned") and 8 <= classes <= 64 and dtype == "bf16"
    observes = name.startswith("observe,")
    few, lanes = observes or short == "fairness_forward", lanes_of(short, classes, layout)
    constants = {
        "C": classes,
        "PIXELS": FEW if observes else 128 // lanes if few else 512 if wide else 256 // lanes,
        "CHUNK": -(-chunk_of(classes) // lanes) * lanes,
        "LANES": lanes,
        "BINS": 16384,
        "GROUP": 32,
    }
    constants |= {"SLACK": SLACK, "LARGE": LARGE, "LEAST": LEAST} | LAYOUTS[layout] | options
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    # Sizes and strides that are 1 are constants to Triton; those from 2^31 on are 64 bits wide.
    integers = "i64" if layout == "strided" else "i32"
    signature = {key: (POINTERS | NUMBERS).get(key, integers) for key in kernel.arg_names} | {"logits": f"*{dtype}"}
    signature |= {"result": f"*{dtype}"} if "result" in signature else {}
    signature |= {"target": "*fp64"} if options.get("SOFT") else {}
    signature |= {"probs": f"*{dtype}"} if "probs" in signature else {}
    signature |= {"partial": "*fp64"} if observes and "partial" in signature else {}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [key for key in kernel.arg_names if signature[key].startswith("*") or re.search("_[bchw]$|width", key)]
    if layout != "aligned":
        aligned = []
    return compile_source(triton, kernel, signature, constants, capability, 1 if few else 4, aligned)


def compile_source(triton, kernel, signature, constants, capability, num_warps, aligned=()):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place = {key: (number,) for number, key in enumerate(kernel.arg_names)}
    values = {place[key]: constants[key] for key in constants if key in place}
    multiples = {place[key]: [["tt.divisibility", 16]] for key in aligned if key not in constants}
    source = ASTSource(kernel, signature, values, multiples)
    settings = {"enable_fp_fusion": False, "num_warps": num_warps}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=settings)


def spilled(triton, cubin, folder):
    """Bytes a thread keeps in memory for want of registers."""
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", folder / "kernel.cubin"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.search(r"STACK:(\d+) .*LOCAL:(\d+)", usage).groups()))


MAPS = {
    "labels predicted target decided weighed": "*i64",
    "counts": "*i32",
    "confidence belief weights peaks bars": "*fp32",
    "thresholds state running sums number history partial share found": "*fp64",
    "seen": "*i1",
    "first_bin bins_per_unit sigmas upper lower": "fp32",
    "momentum beta portion gamma level low bin_width rounding": "i64",  # bits of a float64
}


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.parametrize("name", ["decide", "weigh", "follow", "discount", "spread", "adapt", "table", "rank"])
def test_maps_compile(name, classes, capability, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from selftrain_seg.ops.triton import launch_state as launch
    from selftrain_seg.ops.triton import state as maps

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, bins = getattr(maps, f"{name}_kernel"), launch._ODDS_BINS[-1]
    counted = {"counts": "*i64"} if name == "rank" else {}
    constants = {
        "C": classes,
        "PIXELS": 256 if name == "spread" else 1024,
        "SIZE": launch.power_of_2(classes),
        "BINS": bins,
    }
    constants |= {"GROUP": launch.GROUP_SIZE, "STRICT": False, "VARIANCE": True, "SEEN": 1e-8, "CERTAIN": 0.999}
    constants |= {"BLOCK": 1024, "RULE": 1, "TIE_SHARE": 1 / 256}
    types = {key: kind for keys, kind in MAPS.items() for key in keys.split()} | counted
    signature = {key: "constexpr" if key in constants else types.get(key, "i32") for key in kernel.arg_names}
    compiled = compile_source(triton, kernel, signature, constants, capability, 8 if name == "adapt" else 4)
    if name in ("decide", "weigh"):
        assert "bar.sync" not in compiled.asm["ptx"]
        assert "shfl" not in compiled.asm["ptx"]
    assert ("atom" in compiled.asm["ptx"]) == (name == "spread")
    assert spilled(triton, compiled.asm["cubin"], tmp_path) == 0
