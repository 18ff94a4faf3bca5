"""Declared state: every module that has any keeps, moves, saves and loads it in the same way."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import selftrain_seg  # noqa: F401  (its subclasses of Stateful are looked for)
from selftrain_seg._state import Stateful
from tests.helpers import random_logits
from tests.stateful import CLASSES, KINDS, SIZE, assert_states, states

EACH = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
BATCHES = [random_logits(2, CLASSES, *SIZE, seed=seed) for seed in range(3)]


def fed(kind, batches=BATCHES):
    module = kind.make()
    for batch in batches:
        kind.feed(module, batch)
    return module


def all_states(module):
    """The tensors themselves, by the modules that declare them."""
    return [getattr(part, name) for part in module.modules() if isinstance(part, Stateful) for name in part._defaults]


def test_the_list_is_complete():
    def below(cls):
        return {found for sub in cls.__subclasses__() for found in {sub, *below(sub)}}

    public = {cls for cls in below(Stateful) if cls.__module__.startswith("selftrain_seg.") and cls.__name__[0] != "_"}
    assert {type(kind.make()) for kind in KINDS.values()} == public


@EACH
def test_a_batch_changes_the_state_and_reset_takes_it_back(kind):
    module, fresh = fed(kind), states(kind.make())
    assert any(not torch.equal(value, fresh[name]) for name, value in states(module).items())
    module.reset()
    assert_states(module, fresh)
    kind.feed(module, BATCHES[1])
    assert_states(module, states(fed(kind, BATCHES[1:2])))


@EACH
def test_inference_mode_leaves_nothing_behind(kind):
    expected = states(fed(kind))
    module = kind.make()
    with torch.inference_mode():
        kind.feed(module, BATCHES[0])
        kind.feed(module, BATCHES[1] + 0)  # an inference tensor
        saved = module.state_dict()
    assert not any(state.is_inference() for state in all_states(module))
    kind.feed(module, BATCHES[2])
    assert_states(module, expected)
    module.load_state_dict(saved)  # aliases the states, as everywhere in torch: this changes nothing
    module.reset()
    assert_states(module, states(kind.make()))
    for batch in BATCHES:
        kind.feed(module, batch)
    assert_states(module, expected)


@EACH
def test_loading_and_reset_in_inference_mode(kind):
    saved = copy.deepcopy(fed(kind, BATCHES[:1]).state_dict())
    module = kind.make()
    with torch.inference_mode():
        kind.feed(module, BATCHES[1])
        module.reset()
        module.load_state_dict(saved)
    kind.feed(module, BATCHES[1])
    kind.feed(module, BATCHES[2])
    assert_states(module, states(fed(kind)))


@EACH
def test_made_in_inference_mode(kind):
    with torch.inference_mode():
        module = kind.make()
    assert not any(state.is_inference() for state in all_states(module))
    module.load_state_dict(fed(kind, BATCHES[:1]).state_dict())
    for batch in BATCHES[1:]:
        kind.feed(module, batch)
    assert_states(module, states(fed(kind)))
    module.reset()
    assert_states(module, states(kind.make()))


@EACH
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_a_parent_leaves_states(kind, cast):
    module = fed(kind, BATCHES[:2])
    before = states(module)
    parent = getattr(nn.Sequential(nn.Linear(2, 2), module), cast)()
    assert parent[0].weight.dtype == getattr(torch, {"half": "float16", "double": "float64"}.get(cast, cast))
    assert_states(module, before)
    module.reset()
    assert_states(module, states(kind.make()))


@EACH
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies(kind, way):
    module = fed(kind, BATCHES[:1])
    before = states(module)
    twin = copy.deepcopy(module) if way == "deepcopy" else pickle.loads(pickle.dumps(module))  # noqa: S301
    assert_states(twin, before)
    for batch in BATCHES[1:]:
        kind.feed(twin, batch)
    assert_states(twin, states(fed(kind)))
    assert_states(module, before)  # nothing is shared
    twin.reset()
    assert_states(module, before)
    assert_states(twin, states(kind.make()))


@EACH
def test_state_dict_mid_stream_inside_a_parent(kind, tmp_path):
    parent, resumed = (nn.ModuleDict({"net": nn.Linear(2, 2), "it": kind.make()}) for _ in range(2))
    kind.feed(parent["it"], BATCHES[0])
    torch.save(parent.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    keys = list(saved)
    assert resumed.load_state_dict(saved) == ([], [])
    assert list(saved) == keys  # the caller's dictionary is not changed
    for batch in BATCHES[1:]:
        kind.feed(resumed["it"], batch)
    assert_states(resumed["it"], states(fed(kind)))
    assert_states(parent["it"], states(fed(kind, BATCHES[:1])))


@EACH
@pytest.mark.parametrize("inside", [False, True])
def test_strict_loading(kind, inside):
    module = fed(kind, BATCHES[:1])
    holder = nn.ModuleDict({"it": module}) if inside else module
    saved, before = copy.deepcopy(holder.state_dict()), states(module)
    names = [name for name in saved if not name.endswith("saved_by")]
    for name in names:
        part = {key: value for key, value in saved.items() if key != name}
        with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: \"{name}\"\. $"):
            holder.load_state_dict(part)
        assert holder.load_state_dict(part, strict=False) == ([name], [])
        for wrong in (torch.zeros(2, 7, 3), saved[name].new_zeros(*saved[name].shape, 1)):
            with pytest.raises(RuntimeError, match=rf"`{name}`: expected shape"):
                holder.load_state_dict({**saved, name: wrong})
    prefix = "it." if inside else ""
    for extra in (f"{prefix}other", f"{prefix}sketch.other", "other"):
        with pytest.raises(RuntimeError, match=rf"Unexpected key\(s\) in state_dict: \"{extra}\""):
            holder.load_state_dict({**saved, extra: torch.zeros(1)})
        assert holder.load_state_dict({**saved, extra: torch.zeros(1)}, strict=False) == ([], [extra])
    assert_states(module, before)


@EACH
def test_a_checkpoint_without_who_saved_it_is_that_of_one_process(kind):
    """That is how 0.1.0 saved."""
    module, saved = kind.make(), fed(kind).state_dict()
    module.load_state_dict({name: value for name, value in saved.items() if not name.endswith("saved_by")})
    assert_states(module, states(fed(kind)))


@EACH
def test_a_module_is_shown_with_its_settings(kind):
    module = kind.make()
    shown = repr(module)
    for name in inspect.signature(type(module)).parameters:
        state = name == "prior" and module.prior is not None  # too large to show
        assert (f"{name}={getattr(module, name)!r}" in shown) == (not state)


@EACH
def test_states_are_no_buffers(kind):
    module = fed(kind)
    settings = {"prior"} if "prior" in vars(module).get("_buffers", {}) and module.prior is not None else set()
    assert {name for name, _ in module.named_buffers()} == settings
    assert not list(module.parameters())
    assert not settings & module.state_dict().keys()
    assert nn.Sequential(module).state_dict().keys() == {f"0.{name}" for name in module.state_dict()}


@pytest.mark.parametrize("kind", [pytest.param(KINDS[name], id=name) for name in KINDS if name != "bank"])
def test_states_live_on_one_device_and_say_so(kind):  # the bank may lie on the CPU, and takes maps from anywhere
    module, name = kind.make(), type(kind.make()).__name__
    before = states(module)
    with pytest.raises(ValueError, match=rf"`.*`: expected device cpu, on which this {name} keeps its state, got meta"):
        kind.feed(module, BATCHES[0].to("meta"))
    assert_states(module, before)
    moved = nn.Sequential(nn.Linear(2, 2), module).to("meta")[1]
    assert {state.device.type for state in all_states(moved)} == {"meta"}
    with pytest.raises(ValueError, match=r"expected device meta, .*; move the .* once with \.to\('cpu'\)"):
        kind.feed(moved, BATCHES[0])
    moved.reset()
    assert {state.device.type for state in all_states(moved)} == {"meta"}


def test_a_state_is_a_copy_of_its_default():
    start = torch.zeros(2, requires_grad=True)
    module = Stateful()
    module.add_state("seen", start)
    with torch.no_grad():
        start += 5
    assert module.seen.tolist() == [0.0, 0.0]
    module.seen += 3
    module.reset()
    assert module.seen.tolist() == [0.0, 0.0]
    assert not module.seen.requires_grad


def test_reduced_is_the_state_itself_in_one_process():
    module = Stateful()
    module.add_state("total", torch.tensor([1, 2]), over_ranks="sum")
    module.add_state("most", torch.tensor(3.0), over_ranks="sum")
    module.add_state("same", torch.tensor([[True]]))
    assert [value.tolist() for value in module.reduced("same", "most", "total")] == [[[True]], 3.0, [1, 2]]
