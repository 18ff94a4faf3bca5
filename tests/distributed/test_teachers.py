"""Teachers on two real gloo ranks: alike on both, and what one process with the joined batches gets."""

import numpy as np
import pytest
import torch

from selftrain_seg.teachers._kept import pack, unpack
from tests.distributed import teacher_workers as workers
from tests.oracles import teachers as oracle
from tests.ranks import free_port, start
from tests.teachers.nets import Net, assert_same


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    start(workers.run, free_port(), str(folder), ranks=workers.RANKS)
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(workers.RANKS)]
    assert len(results) == workers.RANKS
    return results


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("kind", workers.KINDS)
def test_teachers_are_the_same_on_all_ranks_to_the_bit(ranks, kind, norm):
    first, second = (result[f"{kind}, {norm}"] for result in ranks)
    assert_same(first["teacher"], second["teacher"])
    if norm == "batch":  # though the students' statistics differ
        assert not torch.equal(first["students"][-1]["norm.running_mean"], second["students"][-1]["norm.running_mean"])


@pytest.mark.parametrize("kind", ["mean", "average", "dual"])
def test_one_process_with_the_joined_batches_gets_the_same(ranks, kind):
    """To 1e-5: the gradients' sums have other roundings."""
    alone = workers.train(kind, "group", [0, 1], wrap=False)
    for name, value in alone["teacher"].items():
        torch.testing.assert_close(ranks[0][f"{kind}, group"]["teacher"][name], value, rtol=1e-5, atol=1e-5, msg=name)
    start = Net(0, "group").head.weight
    assert not torch.allclose(alone["students"][-1]["head.weight"], start, atol=0.05)  # it did learn something


@pytest.mark.parametrize("kind", ["mean", "average"])
def test_buffers_are_averaged_over_ranks(ranks, kind):
    name = "norm.running_var"
    means = [
        (one[name].double() + two[name].double()).div(2)
        for one, two in zip(*(result[f"{kind}, batch"]["students"][1:] for result in ranks), strict=True)
    ]
    expected = means[-1].tolist()
    if kind == "average":
        expected = oracle.averages_by_loops(
            [1.0] * 4, [mean.tolist() for mean in means], oracle.momenta_by_loops(workers.STEPS, 0.9, True)
        )
    np.testing.assert_allclose(ranks[0][f"{kind}, batch"]["teacher"][f"model.{name}"], expected, rtol=1e-6)


def test_buffers_stay_the_ranks_own_without_synchronisation(ranks):
    for result in ranks:
        for name, value in result["student of it"].items():
            assert torch.equal(result["not synchronised"][f"model.{name}"], value)
    names = ("not synchronised", "model.norm.running_mean")
    assert not torch.equal(ranks[0][names[0]][names[1]], ranks[1][names[0]][names[1]])


def test_a_teacher_on_rank_0_alone_waits_for_nobody(ranks):
    """It came to its end, the ranks are in step afterwards, and the buffers are rank 0's."""
    assert [len(result["on rank 0"]) for result in ranks] == [4, 0]
    assert [result["sum after it"].item() for result in ranks] == [3, 3]
    student = Net(0, "batch").train()
    with torch.no_grad():
        student(workers.batch_of(0, [0]))
    for state in ranks[0]["on rank 0"]:
        model = next(name.removesuffix("norm.running_mean") for name in state if name.endswith("norm.running_mean"))
        for name, value in student.state_dict().items():
            assert torch.equal(state[model + name], value), name


@pytest.mark.parametrize("kind", ["dynamic", "dynamic snd"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_decisions_are_the_same_on_all_ranks(ranks, kind, norm):
    first, second = (result[f"{kind}, {norm}"] for result in ranks)
    assert repr(first["history"]) == repr(second["history"])
    assert first["updated"] == second["updated"]
    assert any(first["updated"])
    if norm == "group":
        assert any(not decision[3] for decision in first["history"])  # and one that said no
    assert any(decision[2] not in (0.0, 1.0) for decision in first["history"])  # not all batches alike


def test_decisions_are_those_over_the_batches_of_both_ranks(ranks):
    """Replayed from the students' weights, which are the same on both ranks, with scores by loops."""
    result = ranks[0]["dynamic, group"]
    network, scores = Net(0, "group"), {}

    def score(call, batch, rank):
        if (call, batch, rank) not in scores:
            network.load_state_dict(result["students"][call])
            with torch.no_grad():
                logits = network.eval()(unpack(pack(workers.batch_of(batch, [rank]), True)))
            scores[call, batch, rank] = oracle.entropy_by_loops(logits.permute(0, 2, 3, 1).flatten(0, 2).tolist())
        return scores[call, batch, rank]

    law = {"first": workers.FIRST, "every": workers.EVERY, "most": workers.MOST}
    expected = oracle.decisions_by_loops(workers.STEPS, score, **law, ranks=workers.RANKS)
    assert repr(result["history"]) == repr([list(decision) for decision in expected])
    when = [call - 1 for call, _, _, update in expected if update]
    assert [call for call, happened in enumerate(result["updated"]) if happened] == when
    name = "head.weight"
    weights = oracle.averages_by_loops(
        Net(0, "group").head.weight.flatten().tolist(),
        [result["students"][call + 1][name].flatten().tolist() for call in when],
        [0.7] * len(when),
    )
    np.testing.assert_allclose(result["teacher"][f"teacher.model.{name}"].flatten(), weights, rtol=1e-5, atol=1e-7)
    one_rank = [oracle.decisions_by_loops(workers.STEPS, lambda c, b, _, r=r: score(c, b, r), **law) for r in (0, 1)]
    assert one_rank[0] != expected  # a rank for itself would have decided otherwise
    assert one_rank[1] != expected


def test_agreement_is_that_of_one_process(ranks):
    alone = workers.agreement([0, 1])
    for result in ranks:
        for value, expected in zip(result["agreement"], alone, strict=True):
            assert torch.equal(value, expected)


@pytest.fixture
def shards(ranks):
    if ranks[0]["sharded"] is None:
        pytest.skip("this torch has no fully_shard")
    return [result["sharded"] for result in ranks]


@pytest.mark.parametrize("kind", ["mean", "dynamic"])
def test_fsdp_updates_are_those_of_whole_networks_to_the_bit(shards, kind):
    for result in shards:
        assert_same(result[kind]["sharded"], result[kind]["whole"])
        assert all(result[kind]["answers"])
        torch.testing.assert_close(*result[kind]["distances"])
        assert result[kind]["distances"][0] > 0
        start = Net(0, "group").head.weight
        assert not torch.equal(result[kind]["sharded"]["head.weight"], start)
    parts = [result[kind]["local"] for result in shards]
    assert sum(parts) == sum(parameter.numel() for parameter in Net(0, "group").parameters())  # it was sharded
    assert min(parts) > 0


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("only the student", "`student`: expected first.weight to be sharded as in the teacher; shard both in"),
        ("only the teacher", "`student`: expected first.weight to be sharded as in the teacher; shard both in"),
        (
            "half precision",
            "`student`: expected float32 weights in a sharded network (see MixedPrecisionPolicy), got torch.bfloat16",
        ),
        ("made too late", "`student`: expected a network that can be deep-copied (make the teacher before"),
    ],
)
def test_fsdp_errors(shards, case, message):
    for result in shards:
        assert result["errors"][case].startswith(message)
