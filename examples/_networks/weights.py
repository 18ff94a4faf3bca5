"""Weights from files: of a run, of a backbone, of the published DeepLabV2 networks. Names and sizes must fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

# What training scripts wrap a network's state in, and what their wrappers put before names.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "student", "teacher", "ema")
_WRAPPERS = ("module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"  # of BatchNorm; older files have none, and nothing here reads it
_SHOWN = 4


def read_state(path: Path, option: str) -> State:
    """Read tensors by name, without what wrappers put around and before them.

    Args:
        path: a file of ``torch.save`` (nothing but tensors and plain containers is unpickled) or of safetensors, or the
            folder of a run.
        option: what the path was given as, for errors.
    """
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise SystemExit(f"{option} {path}: no such file")
    try:
        content = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    except Exception as error:  # of any kind, where bytes are read that are none of torch
        if type(error).__name__ == "UnpicklingError":
            raise SystemExit(
                f"{option} {path}: not a state dict of torch.save; of a network that was pickled whole, which could "
                "run any code, save the state_dict() instead"
            ) from None
        reason = str(error).split(". ")[0] or type(error).__name__
        raise SystemExit(f"{option} {path}: damaged, or not a file of torch.save ({reason[:200]})") from None
    while isinstance(content, Mapping) and not any(isinstance(part, Tensor) for part in content.values()):
        inner = [content[name] for name in _CONTAINERS if isinstance(content.get(name), Mapping)]
        apart = (content.get(name) for name in ("feature_extractor", "classifier"))
        parts = [part for part in apart if isinstance(part, Mapping)]
        if not inner and len(parts) != 2:
            found = ", ".join(map(repr, list(content)[:_SHOWN])) or "nothing"
            raise SystemExit(f"{option} {path}: expected tensors by name, got a dict of {found}")
        # Of DT-ST, which keeps backbone and head apart.
        content = inner[0] if inner else {**_unwrapped(parts[0]), **_unwrapped(parts[1])}
    if not isinstance(content, Mapping):
        raise SystemExit(f"{option} {path}: expected a state dict, got {type(content).__name__}")
    return _unwrapped(content)


def load_network(net: nn.Module, path: Path, option: str = "--init") -> None:
    """Load all weights of a network: from a run, or from a published DeepLabV2 under its own names."""
    state = read_state(path, option)
    if hasattr(getattr(net, "net", net), "rename"):  # DeepLabV2
        state = net.net.rename(state)
    inner, wanted = getattr(net, "net", None), net.state_dict().keys()
    if isinstance(inner, nn.Module) and not state.keys() & wanted and state.keys() & inner.state_dict().keys():
        state = {f"net.{name}": tensor for name, tensor in state.items()}  # of the user's network, without `Scaled`
    _fit(net, state, f"{option} {path}", "not the weights of this --network and these classes")
    net.load_state_dict(state, strict=False)


def load_backbone(backbone: nn.Module, path: Path, option: str = "--backbone-weights", *, prefix: str = "") -> str:
    """Load pre-trained weights into the backbone of a network; returns a line that says what was taken.

    Names may have something before them (``backbone.``, ``module.encoder.``). Where none is known, tensors are taken in
    their order, if all sizes agree. What the file has more, a classifier say, is left out.

    Args:
        backbone: the part of the network that the file belongs to.
        path: the file.
        option: what it was given as, for errors.
        prefix: what names of the network have before those of the backbone, for the line.
    """
    state = read_state(path, option)
    wanted = [name for name in backbone.state_dict() if not name.endswith(_COUNTER)]
    named = max(_renamings(state, wanted), key=lambda names: len(names.keys() & set(wanted)))
    where = f"{option} {path}"
    how = "by name"
    if not named.keys() & set(wanted):
        named, how = _in_order(backbone, state, where), "by order: the names are others"
    taken = {name: tensor for name, tensor in named.items() if name in backbone.state_dict()}
    _fit(backbone, taken, where, "not the weights of this --network's backbone")
    backbone.load_state_dict(taken, strict=False)
    left = [name for name in named if name not in taken and not name.endswith(_COUNTER)]
    more = f"; not used: {_some(left)}" if left else ""
    return f"{where}: {len([name for name in taken if not name.endswith(_COUNTER)])} tensors {how} into {prefix}*{more}"


def published_names(state: State) -> tuple[State, bool]:
    """Give a published DeepLabV2-ResNet101 the names of ``DeepLabV2``.

    ``layer1.0.conv1.weight`` and ``backbone.layer1.0.conv1.weight`` are the ResNet's; ``layer5.conv2d_list.0.weight``,
    ``classifier.0.convs.0.weight`` and ``conv2d_list.0.weight`` the head's. Of a network with two heads, ``layer5`` and
    ``layer6``, the second is taken: it is the one that predicts.

    Returns:
        The tensors under their new names, and whether the names are those of the networks converted from Caffe (CRST,
        and the initial weights on COCO), whose ResNet differs, see ``DeepLabV2``.
    """
    state = {re.sub(r"^Scale\.", "", name): tensor for name, tensor in state.items()}
    head = "layer6" if any(name.startswith("layer6.") for name in state) else "layer5"
    made, caffe = {}, False
    for name, tensor in state.items():
        backbone = re.fullmatch(r"(backbone\.)?((?:conv1|bn1|layer[1-4])\..+)", name)
        branch = re.fullmatch(rf"(?:({head})\.|classifier\.(?:0\.)?)?(?:conv2d_list|convs)\.(\d\..+)", name)
        if backbone is not None:
            made[f"backbone.{backbone[2]}"] = tensor
        elif branch is not None:
            made[f"classifier.{branch[2]}"] = tensor
            caffe |= branch[1] is not None
        elif not re.match(r"layer5\.|fc\.|aux", name):
            made[name] = tensor
    return made, caffe


def _torch_file(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> State:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise SystemExit(f"{path}: needs safetensors: pip install safetensors") from None
    return load_file(path)


def _unwrapped(state: Mapping[str, Any]) -> State:
    """Tensors only, and names without those of wrappers around the whole network."""
    tensors = {str(name): part for name, part in state.items() if isinstance(part, Tensor)}
    while tensors and (wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in tensors)), None)):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _renamings(state: State, wanted: list[str]) -> list[State]:
    """The file's tensors with fewer, and with the backbone's own, words before their names."""
    fronts = {""} | {".".join(name.split(".")[:count]) + "." for name in state for count in (1, 2, 3)}
    common = wanted[0].split(".")[0] + "." if len({name.split(".")[0] for name in wanted}) == 1 else ""
    made = []
    for front in sorted(fronts, key=len):
        inside = {name.removeprefix(front): tensor for name, tensor in state.items() if name.startswith(front)}
        outside = {name: tensor for name, tensor in state.items() if not name.startswith(front)}
        made += [{**outside, **{before + name: tensor for name, tensor in inside.items()}} for before in {"", common}]
    return made


def _in_order(backbone: nn.Module, state: State, where: str) -> State:
    wanted = {name: tensor for name, tensor in backbone.state_dict().items() if not name.endswith(_COUNTER)}
    given = [(name, tensor) for name, tensor in state.items() if not name.endswith(_COUNTER)]
    fit = [there.shape == tensor.shape for there, (_, tensor) in zip(wanted.values(), given, strict=False)]
    if len(given) < len(wanted) or not all(fit):
        raise SystemExit(
            f"{where}: not the weights of this --network's backbone: neither names nor sizes in their order agree. "
            f"Expected {_some(wanted)}; got {_some(dict(given))}"
        )
    made = dict(zip(wanted, (tensor for _, tensor in given), strict=False))
    return made | dict(given[len(wanted) :])


def _fit(net: nn.Module, state: State, where: str, what: str) -> None:
    """One error that names what is missing, what is too much, and what has another size."""
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith((_COUNTER, "converted"))]
    strange = [name for name in state if name not in wanted and not name.endswith(_COUNTER)]
    sizes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [f"without {_some(missing)}"] * bool(missing) + [f"with {_some(strange)}"] * bool(strange)
    faults += [f"{'; '.join(sizes[:_SHOWN])}{f' and {len(sizes) - _SHOWN} more' * (len(sizes) > _SHOWN)}"] * bool(sizes)
    if faults:
        raise SystemExit(f"{where}: {what}: {'; '.join(faults)}")


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
