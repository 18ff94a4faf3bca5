"""One set of statistics for each domain."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from selftrain_seg.batchnorm import (
    add_domain,
    freeze_batchnorm,
    get_statistics,
    remove_domain,
    set_statistics,
    use_domain,
)
from selftrain_seg.teachers import MeanTeacher
from tests.batchnorm.nets import assert_state, state, target, trained


def split(**settings):
    net = trained(dropout=0.0, **settings)
    add_domain(net, "target")
    return net


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def statistics(net, domain):
    with use_domain(net, domain):
        return get_statistics(net)


def test_each_domain_moves_its_own_and_weights_are_shared():
    """As two networks with the same weights, each of which sees one domain."""
    net, source, other = split(), target(seed=1), target(seed=2)
    apart = [trained(dropout=0.0), trained(dropout=0.0)]
    assert same(statistics(net, "target"), get_statistics(net))
    for one, two in zip(source, other, strict=True):
        expected = apart[0](one).square().mean() + apart[1](two).square().mean()
        loss = net(one).square().mean()
        with use_domain(net, "target"):
            loss = loss + net(two).square().mean()
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (net, *apart)]
        for mine, first, second in zip(*(each.parameters() for each in (net, *apart)), strict=True):
            total = first.grad + second.grad
            torch.testing.assert_close(mine.grad, total)
            mine.grad, first.grad, second.grad = total, total.clone(), total.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for found, expected in zip((statistics(net, None), statistics(net, "target")), apart, strict=True):
        for name, tensor in get_statistics(expected).items():
            torch.testing.assert_close(found[name], tensor)
    assert net.norms[0].num_batches_tracked == net.norms[0].target_num_batches_tracked == 7 + 3


def test_gradients_in_evaluation_mode_of_both_domains():
    """Nothing that backward needs is overwritten by changing the domain."""
    net = split().eval()
    with use_domain(net, "target"):
        set_statistics(net, {name: tensor + 1 for name, tensor in get_statistics(net).items()})
    (images,) = target((2,))
    loss = net(images).sum()
    with use_domain(net, "target"):
        loss = loss + 2 * net(images).sum()
    loss.backward()
    total = net.convs[0].weight.grad.clone()
    net.zero_grad()
    net(images).sum().backward()
    with use_domain(net, "target"):
        (2 * net(images).sum()).backward()
    torch.testing.assert_close(net.convs[0].weight.grad, total)


def moved():
    """A network whose domains differ."""
    net = split()
    add_domain(net, "night")
    for number, domain in enumerate((None, "target", "night")):
        with use_domain(net, domain):
            net(target(seed=number)[0])
    return net


def test_blocks_are_nested():
    net = moved()
    home, day, night = (statistics(net, domain) for domain in (None, "target", "night"))
    with use_domain(net, "target"):
        with use_domain(net, "night"):
            assert same(get_statistics(net), night)
            with use_domain(net, None):
                assert same(get_statistics(net), home)
            with use_domain(net, "night"):
                assert same(get_statistics(net), night)
            assert same(get_statistics(net), night)
        assert same(get_statistics(net), day)
    assert same(get_statistics(net), home)
    with pytest.raises(RuntimeError, match="in the middle"), use_domain(net, "target"):
        raise RuntimeError("in the middle")
    assert same(get_statistics(net), home)


def test_the_state_dict_is_the_same_whichever_domain_is_in_use():
    net = moved()
    before = state(net)
    assert {"norms.0.target_running_mean", "norms.0.night_running_var", "norms.0.target_num_batches_tracked"} <= {
        *before
    }
    for domain in ("target", "night"):
        with use_domain(net, domain):
            assert_state(net, before)
    assert not torch.equal(before["norms.0.running_mean"], before["norms.0.target_running_mean"])


@pytest.mark.parametrize("saving", [None, "target"])
@pytest.mark.parametrize("loading", [None, "night"])
def test_saved_and_loaded(saving, loading):
    net, file = moved(), io.BytesIO()
    with use_domain(net, saving):
        torch.save(net.state_dict(), file)
    file.seek(0)
    other = trained(3, dropout=0.0)
    add_domain(other, "target")
    add_domain(other, "night")
    saved = torch.load(file, weights_only=True)
    keys = list(saved)
    with use_domain(other, loading):
        other.load_state_dict(saved)
    assert list(saved) == keys
    assert_state(other, state(net))
    for domain in (None, "target", "night"):
        assert same(statistics(other, domain), statistics(net, domain))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])  # noqa: S301, our own
@pytest.mark.parametrize("domain", [None, "target"])
def test_copies(way, domain):
    net = moved()
    with use_domain(net, domain):
        other = way(net)
        before = state(net)
        assert_state(other, before)
        other(target(seed=5)[0])
        assert_state(net, before)
        assert same(statistics(other, "night"), statistics(net, "night"))
        assert not same(get_statistics(other), get_statistics(net))
        with use_domain(other, "night"):  # its hooks look at itself
            assert_state(net, before)
            assert torch.equal(other.state_dict()["norms.0.night_running_mean"], before["norms.0.night_running_mean"])


def test_moved_and_cast():
    net = moved()
    with use_domain(net, "target"):
        net.double()
    assert {tensor.dtype for tensor in statistics(net, None).values()} == {torch.float64}
    assert {tensor.dtype for tensor in statistics(net, "night").values()} == {torch.float64}
    assert same(statistics(net, "target"), {n: t.double() for n, t in statistics(moved(), "target").items()})


def test_gone_again():
    net = moved()
    final = statistics(net, "target")
    remove_domain(net, "target")
    remove_domain(net, "night")
    set_statistics(net, final)
    plain = trained()
    plain.load_state_dict(net.state_dict())
    assert same(get_statistics(plain), final)
    add_domain(net, "target")
    with use_domain(net, "target"):
        assert same(get_statistics(net), final)


def test_only_added_domains_count():
    net = split()
    with pytest.raises(
        ValueError, match=r"`domain`: expected a domain added by `add_domain`, got 'night'; norms\.0 has"
    ):
        use_domain(net, "night").__enter__()
    with pytest.raises(ValueError, match=r"'night'; norms\.0 has 'target'"):
        remove_domain(net, "night")
    with pytest.raises(ValueError, match=r"`domain`: expected a new name, got 'target', which norms\.0 already has"):
        add_domain(net, "target")
    with use_domain(net, "target"), pytest.raises(ValueError, match="a domain that is not in use, got 'target'"):
        remove_domain(net, "target")
    for name in ("", "a b", "a.b", "1"):
        with pytest.raises(ValueError, match="`domain`: expected a name such as 'target'"):
            add_domain(net, name)
    with pytest.raises(TypeError, match="`domain`: expected a string, got int"):
        add_domain(net, 3)
    with pytest.raises(ValueError, match="`net`: expected BatchNorm layers"):
        add_domain(nn.Conv2d(3, 4, 1), "target")
    with use_domain(trained(), None):
        pass


def test_an_older_checkpoint_is_refused():
    with pytest.raises(RuntimeError, match=r"Missing key.*target_running_mean"):
        split().load_state_dict(trained().state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_compiled_once(training):
    """A change of domain is no reason to compile anew."""
    net, compiled = moved().train(training), []
    expected = copy.deepcopy(net)

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    fast = torch.compile(net, backend=backend, fullgraph=True)
    for number, domain in enumerate((None, "target", "night", None, "target")):
        images = target((2,), seed=number)[0]
        with use_domain(fast, domain), use_domain(expected, domain):
            torch.testing.assert_close(fast(images), expected(images))
    assert len(compiled) == 1
    assert_state(net, state(expected))


def test_teachers_follow_each_domain():
    net = moved()
    teacher = MeanTeacher(net, momentum=0.5)
    for number, domain in enumerate(("target", None, "night")):
        with use_domain(net, domain):
            net(target(seed=7 + number)[0])
        teacher.update(net)
    for domain in (None, "target", "night"):
        assert same(statistics(teacher.model, domain), statistics(net, domain))
    with use_domain(teacher, "target"), torch.no_grad():
        images = target()[0]
        found = teacher(images)
    with use_domain(teacher, None):
        assert not torch.allclose(found, teacher(images))


def test_frozen():
    net = moved()
    freeze_batchnorm(net)
    before = state(net)
    for domain in (None, "target"):
        with use_domain(net.train(), domain):
            net(target(seed=8)[0])
    assert_state(net, before)
