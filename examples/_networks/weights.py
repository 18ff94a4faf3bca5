"""Load weights from files: of a run, a backbone or a published DeepLabV2. Names and sizes must match."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

# Keys under which training scripts save a network's state, and prefixes of wrappers.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "student", "teacher", "ema")
_WRAPPERS = ("module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"  # of BatchNorm; unused here, and absent in older files
_SHOWN = 4


def read_state(path: Path, option: str) -> State:
    """Read tensors by name from a file, without outer keys and prefixes of wrappers.

    Args:
        path: a file of ``torch.save`` (only tensors and plain containers are unpickled) or of safetensors, or the
            folder of a run.
        option: the option of the path, for errors.
    """
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise SystemExit(f"{option} {path}: no such file")
    try:
        content = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    except Exception as error:  # of many types, if the file is not of torch
        if type(error).__name__ == "UnpicklingError":
            raise SystemExit(
                f"{option} {path}: not a state dict of torch.save; a whole pickled network could run any code: save "
                "its state_dict() instead"
            ) from None
        reason = str(error).split(". ")[0] or type(error).__name__
        raise SystemExit(f"{option} {path}: damaged, or not a file of torch.save ({reason[:200]})") from None
    while isinstance(content, Mapping) and not any(isinstance(part, Tensor) for part in content.values()):
        inner = [content[name] for name in _CONTAINERS if isinstance(content.get(name), Mapping)]
        halves = (content.get(name) for name in ("feature_extractor", "classifier"))  # DT-ST saves them separately
        parts = [part for part in halves if isinstance(part, Mapping)]
        if not inner and len(parts) != 2:
            found = ", ".join(map(repr, list(content)[:_SHOWN])) or "nothing"
            raise SystemExit(f"{option} {path}: expected tensors by name, got a dict of {found}")
        content = inner[0] if inner else {**_unwrapped(parts[0]), **_unwrapped(parts[1])}
    if not isinstance(content, Mapping):
        raise SystemExit(f"{option} {path}: expected a state dict, got {type(content).__name__}")
    return _unwrapped(content)


def load_network(net: nn.Module, path: Path, option: str = "--init") -> None:
    """Load all weights of a network, from a run or from a published DeepLabV2."""
    state = read_state(path, option)
    if hasattr(getattr(net, "net", net), "rename"):  # DeepLabV2
        state = net.net.rename(state)
    inner, wanted = getattr(net, "net", None), net.state_dict().keys()
    if isinstance(inner, nn.Module) and not state.keys() & wanted and state.keys() & inner.state_dict().keys():
        state = {f"net.{name}": tensor for name, tensor in state.items()}  # saved without the wrapper `Scaled`
    _check_fit(net, state, f"{option} {path}", "not the weights of this --network with these classes")
    net.load_state_dict(state, strict=False)


def load_backbone(backbone: nn.Module, path: Path, option: str = "--backbone-weights", *, prefix: str = "") -> str:
    """Load pre-trained weights into the backbone of a network; returns a line of text about the loaded tensors.

    Names in the file may have a prefix, such as ``backbone.`` or ``module.encoder.``. If no name matches, tensors are
    loaded in their order, provided that all sizes match. Further tensors, such as a classifier, are left out.

    Args:
        backbone: the backbone of the network.
        path: the file.
        option: the option of the file, for errors.
        prefix: of the backbone in the network, for the text.
    """
    state = read_state(path, option)
    wanted = [name for name in backbone.state_dict() if not name.endswith(_COUNTER)]
    named = max(_renamings(state, wanted), key=lambda names: len(names.keys() & set(wanted)))
    where = f"{option} {path}"
    how = "by name"
    if not named.keys() & set(wanted):
        named, how = _in_order(backbone, state, where), "by order, since no name matches,"
    taken = {name: tensor for name, tensor in named.items() if name in backbone.state_dict()}
    _check_fit(backbone, taken, where, "not the weights of this --network's backbone")
    backbone.load_state_dict(taken, strict=False)
    left = [name for name in named if name not in taken and not name.endswith(_COUNTER)]
    more = f"; not used: {_listed(left)}" if left else ""
    return f"{where}: {len([name for name in taken if not name.endswith(_COUNTER)])} tensors {how} into {prefix}*{more}"


def published_names(state: State) -> tuple[State, bool]:
    """Rename the weights of a published DeepLabV2-ResNet101 to the names of ``DeepLabV2``.

    The ResNet has names like ``layer1.0.conv1.weight`` or ``backbone.layer1.0.conv1.weight``; the head has
    ``layer5.conv2d_list.0.weight``, ``classifier.0.convs.0.weight`` or ``conv2d_list.0.weight``. If there are two
    heads, ``layer5`` and ``layer6``, the second is used, because it makes the predictions.

    Returns:
        The renamed tensors, and whether the network was converted from Caffe (CRST, initial weights on COCO), see
        ``DeepLabV2``.
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
        raise SystemExit(f"{path}: safetensors is not installed: pip install safetensors") from None
    return load_file(path)


def _unwrapped(state: Mapping[str, Any]) -> State:
    """Return the tensors alone, without prefixes that all names share because of a wrapper."""
    tensors = {str(name): part for name, part in state.items() if isinstance(part, Tensor)}
    while tensors and (wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in tensors)), None)):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _renamings(state: State, wanted: list[str]) -> list[State]:
    """Return the state with each prefix removed, or replaced by the prefix of the backbone."""
    prefixes = {""} | {".".join(name.split(".")[:count]) + "." for name in state for count in (1, 2, 3)}
    common = wanted[0].split(".")[0] + "." if len({name.split(".")[0] for name in wanted}) == 1 else ""
    made = []
    for prefix in sorted(prefixes, key=len):
        inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        outside = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        made += [{**outside, **{before + name: tensor for name, tensor in inside.items()}} for before in {"", common}]
    return made


def _in_order(backbone: nn.Module, state: State, where: str) -> State:
    wanted = {name: tensor for name, tensor in backbone.state_dict().items() if not name.endswith(_COUNTER)}
    given = [(name, tensor) for name, tensor in state.items() if not name.endswith(_COUNTER)]
    fit = [there.shape == tensor.shape for there, (_, tensor) in zip(wanted.values(), given, strict=False)]
    if len(given) < len(wanted) or not all(fit):
        raise SystemExit(
            f"{where}: not the weights of this --network's backbone: neither the names nor the order of sizes match. "
            f"Expected {_listed(wanted)}; got {_listed(dict(given))}"
        )
    made = dict(zip(wanted, (tensor for _, tensor in given), strict=False))
    return made | dict(given[len(wanted) :])


def _check_fit(net: nn.Module, state: State, where: str, what: str) -> None:
    """Exit with one error that names missing tensors, unknown tensors and tensors of another size."""
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith((_COUNTER, "converted"))]
    unknown = [name for name in state if name not in wanted and not name.endswith(_COUNTER)]
    sizes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [f"without {_listed(missing)}"] * bool(missing) + [f"with {_listed(unknown)}"] * bool(unknown)
    faults += [f"{'; '.join(sizes[:_SHOWN])}{f' and {len(sizes) - _SHOWN} more' * (len(sizes) > _SHOWN)}"] * bool(sizes)
    if faults:
        raise SystemExit(f"{where}: {what}: {'; '.join(faults)}")


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
