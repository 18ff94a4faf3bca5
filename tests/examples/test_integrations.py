"""The integrations, run as people run them: each framework's own launcher, checkpoints and way to resume."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.distributed.test_ranks import free_port
from tests.examples.trainers import EXAMPLES, environment

pytestmark = pytest.mark.slow

SCRIPTS = EXAMPLES / "integrations"
CLASSES = 13

# Keeps what every rank has at the end, which checkpoints do not: they are written by rank 0.
LIGHTNING_RANKS = """
import sys
sys.path.insert(0, {scripts!r})
import lightning, torch, lightning_module

class Keep(lightning.Callback):
    def on_fit_end(self, trainer, module):
        torch.save(module.state_dict(), f"{out}/rank{{trainer.global_rank}}of{{trainer.world_size}}.pt")

Trainer = lightning.Trainer
lightning.Trainer = lambda **options: Trainer(**{{**options, "callbacks": [*options["callbacks"], Keep()]}})
if __name__ == "__main__":
    lightning_module.main()
"""
ACCELERATE_RANKS = """
import sys
sys.path.insert(0, {scripts!r})
import accelerate, torch, accelerate_loop

def save_state(self, folder):
    state = [thing.state_dict() for thing in (self._models[0], *self._custom_objects)]
    torch.save(state, f"{out}/rank{{self.process_index}}of{{self.num_processes}}.pt")

accelerate.Accelerator.save_state = save_state
accelerate_loop.main()
"""


def source_network(folder: Path) -> Path:
    """The network that a script has trained, in a folder named by the code that made it."""
    return next(folder.glob("*/source-16.pt"))


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        text = f"{module} is not installed: pip install -e '.[integrations]'"
        if os.environ.get("SELFTRAIN_SEG_REQUIRE_INTEGRATIONS") == "1":
            pytest.fail(text)
        pytest.skip(text)


def run(*command: object, cwd: Path) -> str:
    words = [sys.executable, *map(str, command)]
    # Accelerate reads a configuration from HF_HOME, and both put rank numbers into the environment.
    kept = {name: value for name, value in environment().items() if not name.startswith(("ACCELERATE_", "PL_"))}
    kept |= {"HF_HOME": str(cwd / "huggingface"), "COLUMNS": "200"}
    done = subprocess.run(words, cwd=cwd, env=kept, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def numbers(pattern: str, output: str) -> list[float]:
    found = [float(number) for match in re.finditer(pattern, output) for number in match.groups()]
    assert found, output
    return found


def assert_equal(one, other, place="state"):
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, (dict, list, tuple)):
        keys = one.keys() if isinstance(one, dict) else range(len(one))
        assert (one.keys() == other.keys()) if isinstance(one, dict) else (len(one) == len(other)), place
        for key in keys:
            assert_equal(one[key], other[key], f"{place}/{key}")
    else:
        assert one == other, place


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with the drawn images and the source network in it, and what the plain script says."""
    folder = tmp_path_factory.mktemp("integrations")
    return folder, run(SCRIPTS / "plain_pytorch.py", "--smoke", "--out", folder, cwd=folder)


@pytest.fixture
def begun(out, tmp_path):
    """A folder of its own for a test, with the same images and source network."""
    for file in out[0].glob("*.pt"):
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path


def test_scripts_are_short():
    for script in SCRIPTS.glob("[a-z]*.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 120, script.name


def test_plain_pytorch(out):
    folder, output = out
    assert all(0 < value < 100 for value in numbers(r"mIoU (\d+\.\d)", output))
    low, high, *_ = thresholds = numbers(r"thresholds (\d\.\d+) to (\d\.\d+)", output)
    assert len(thresholds) == 4
    assert 1 / CLASSES <= low < high <= 1
    # The portions asked for; re-weighting gives some pixels to other classes than the predicted one.
    assert numbers(r"selected (\d\.\d+)", output) == pytest.approx([0.3, 0.4], abs=0.15)
    before, after = (torch.load(path, weights_only=True) for path in (source_network(folder), folder / "plain.pt"))
    assert before.keys() == after.keys()
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


def lightning_checkpoint(folder: Path):
    return torch.load(folder / "lightning" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def lightning(out, tmp_path_factory):
    """Two epochs that nothing interrupted."""
    need("lightning")
    folder = tmp_path_factory.mktemp("lightning")
    for file in out[0].glob("*.pt"):
        (folder / file.name).hardlink_to(file)
    return folder, run(SCRIPTS / "lightning_module.py", "--smoke", "--out", folder, cwd=folder)


def test_lightning_state_is_in_the_checkpoint(lightning):
    folder, output = lightning
    (adapted,) = numbers(r"adapted: mIoU (\d+\.\d)", output)
    assert 0 < adapted < 100
    assert "module(s) in eval mode at the start of training" not in output
    saved = lightning_checkpoint(folder)
    state = saved["state_dict"]
    assert state["teacher.step"] == saved["global_step"] == 8
    assert ((state["thresholds"] > 1 / CLASSES) & (state["thresholds"] <= 1)).all()
    assert (state["thresholds"] < 1).sum() > 5
    assert state["kc.sketch.counts"].sum() == 0  # counted, used and begun anew
    name = "stem.1.0.weight"
    assert not torch.equal(state[f"student.{name}"], state[f"teacher.model.{name}"])
    # The student's statistics are those of both domains, the teacher's those of the target.
    name = "stem.1.1.running_mean"
    assert not torch.allclose(state[f"student.{name}"], state[f"teacher.model.{name}"], atol=1e-3)


def test_lightning_resumed_equals_uninterrupted(lightning, begun):
    script = SCRIPTS / "lightning_module.py"
    run(script, "--smoke", "--epochs", 1, "--out", begun, cwd=begun)
    begun_with = lightning_checkpoint(begun)
    assert begun_with["global_step"] == 4
    run(script, "--smoke", "--resume", "--out", begun, cwd=begun)
    whole, resumed = lightning_checkpoint(lightning[0]), lightning_checkpoint(begun)
    for part in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert_equal(whole[part], resumed[part], part)
    # Validation between the epochs has left the teacher in train mode: its statistics go on following the target's.
    name = "teacher.model.stem.1.1.running_mean"
    assert not torch.equal(begun_with["state_dict"][name], resumed["state_dict"][name])


def test_lightning_on_two_processes(begun):
    need("lightning")
    driver = begun / "driver.py"
    driver.write_text(LIGHTNING_RANKS.format(scripts=str(SCRIPTS), out=begun), encoding="utf-8")
    run(driver, "--smoke", "--epochs", 1, "--devices", 2, "--out", begun, cwd=begun)
    # Every rank takes up the checkpoint of the first, but its own counts.
    output = run(driver, "--smoke", "--devices", 2, "--resume", "--out", begun, cwd=begun)
    (adapted,) = numbers(r"adapted: mIoU (\d+\.\d)", output)
    assert 0 < adapted < 100
    first, second = (torch.load(begun / f"rank{rank}of2.pt", weights_only=True) for rank in (0, 1))
    assert first["teacher.step"] == 4  # half as many steps, each of twice the images
    assert (first["thresholds"] < 1).sum() > 5
    for name in first:
        # BatchNorm sees another batch on each rank; a rank's counts say whose they are.
        if "running_" not in name and not name.endswith("saved_by"):
            assert torch.equal(first[name], second[name]), name


def test_accelerate_accumulates_compiles_and_saves_a_plain_network(begun):
    need("accelerate")
    script, options = SCRIPTS / "accelerate_loop.py", ["--smoke", "--device", "cpu", "--out", begun]
    options += ["--accumulate", 2, "--mixed-precision", "bf16", "--compile", "eager"]
    output = run(script, *options, cwd=begun)
    assert numbers(r"adapted: mIoU \d+\.\d, (\d+) updates", output) == [4]  # eight batches
    assert all(0 < value <= 0.999 for value in numbers(r"θ (\d\.\d+) to (\d\.\d+)", output))
    network, before = (torch.load(path, weights_only=True) for path in (begun / "accelerate.pt", source_network(begun)))
    assert network.keys() == before.keys()
    teacher, selector = (
        torch.load(begun / "accelerate" / f"custom_checkpoint_{number}.pkl", weights_only=True) for number in (0, 1)
    )
    assert teacher["step"] == 4
    assert not torch.equal(teacher["model.stem.1.0.weight"], network["stem.1.0.weight"])
    assert selector["thresholds"].ne(0.9).any()

    output = run(script, *options, "--resume", cwd=begun)
    assert numbers(r"adapted: mIoU \d+\.\d, (\d+) updates", output) == [8]


def test_accelerate_on_two_processes(begun):
    need("accelerate")
    driver = begun / "driver.py"
    driver.write_text(ACCELERATE_RANKS.format(scripts=str(SCRIPTS), out=begun), encoding="utf-8")
    # On CPUs accelerate's own launcher starts one process, whatever --num_processes says.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    output = run(*launch, driver, "--smoke", "--device", "cpu", "--out", begun, cwd=begun)
    assert numbers(r"adapted: mIoU \d+\.\d, (\d+) updates", output) == [4]
    first, second = (torch.load(begun / f"rank{rank}of2.pt", weights_only=True) for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        for name in one:
            if "running_" not in name:
                assert torch.equal(one[name], other[name]), name
    assert len(first) == 3  # student, teacher, selector


def test_smp(begun):
    need("segmentation_models_pytorch")
    output = run(SCRIPTS / "smp_network.py", "--smoke", "--out", begun, cwd=begun)
    scores = numbers(r"mIoU (\d+\.\d)", output)
    assert len(scores) == 4
    assert all(0 < value < 100 for value in scores)
    low, high, *_ = numbers(r"thresholds (\d\.\d+) to (\d\.\d+)", output)
    assert 1 / CLASSES <= low < high <= 1

    import segmentation_models_pytorch as smp

    network = smp.from_pretrained(begun / "smp").eval()
    assert network(torch.rand(1, 3, 64, 128)).shape == (1, CLASSES, 64, 128)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


class _WithEstimator(nn.Module):
    """A training step as a module, which is what Lightning wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 4, 1)
        self.kc = ClassBalancedThreshold(4, 0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images)
        self.kc.update(logits)
        return logits.mean()


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    images = torch.rand(2, 3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    for broadcast in (False, True):
        torch.manual_seed(0)
        module = _WithEstimator()
        wrapped = DistributedDataParallel(module, broadcast_buffers=broadcast)
        for batch in images[rank]:
            wrapped(batch)
        found[broadcast] = module.kc.compute()
    if rank == 0:
        torch.save(found, Path(folder) / "thresholds.pt")
    dist.destroy_process_group()


def test_an_estimator_in_a_wrapped_module_keeps_its_own_counts(tmp_path):
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "thresholds.pt", weights_only=True)
    torch.manual_seed(0)
    alone = _WithEstimator()
    for batch in torch.rand(2, 3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).flatten(0, 1):
        alone(batch)
    for thresholds in found.values():  # whether or not buffers are broadcast
        assert torch.equal(thresholds, alone.kc.compute())
