import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain_seg.views import ViewParameters, replay, replay_inverse
from tests.oracles.views import inverse_by_loops, view_by_loops


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters_of(image_size, size, scaled, corner, flipped, upside_down=None, turns=None):
    """Parameters with this geometry and nothing done to the colours."""
    batch = len(scaled)
    return ViewParameters(
        image_size=image_size,
        size=size,
        scaled=torch.tensor(scaled).reshape(batch, 2),
        corner=torch.tensor(corner).reshape(batch, 2),
        flipped=torch.tensor(flipped, dtype=torch.bool),
        vertically_flipped=torch.tensor(upside_down or [False] * batch, dtype=torch.bool),
        quarter_turns=torch.tensor(turns or [0] * batch),
        jitter=torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(batch, -1),
        grey=torch.zeros(batch, dtype=torch.bool),
        blur_sigma_px=torch.zeros(batch),
        cut_out=torch.zeros(batch, *size, dtype=torch.bool),
    )


@st.composite
def geometries(draw, least=1, most=40, batch=3):
    """Parameters for images up to 9×9, ``least`` and ``most`` in tenths of the scale."""
    sides = st.integers(1, 9)
    image_size, size = (draw(sides), draw(sides)), (draw(sides), draw(sides))
    scaled, corner, turns = [], [], []
    for _ in range(batch):
        tall = [draw(st.integers(-(-n * least // 10), max(1, n * most // 10))) for n in image_size]
        scaled.append(tall)
        turns.append(draw(st.integers(0, 3)))
        window = size[::-1] if turns[-1] % 2 else size
        corner.append([draw(st.integers(0, max(0, s - n))) for s, n in zip(tall, window, strict=True)])
    flips = [[draw(st.booleans()) for _ in range(batch)] for _ in range(2)]
    return parameters_of(image_size, size, scaled, corner, *flips, turns)


def of_image(parameters, b):
    return tuple(part[b].tolist() for part in parameters[2:7])


def identity(image_size, batch=2):
    return parameters_of(image_size, image_size, [image_size] * batch, [[0, 0]] * batch, [False] * batch)


def test_by_hand():
    # 2×2 enlarged to 4×4, rows 1 and 2, columns 1 to 3, mirrored: rows (0, 1), columns (1, 1, 0) of the image.
    # Bilinear: places of the columns in the image are 0.75, 1.25, 1.75, that is 1/4, 3/4 and 5/4 of the way from the
    # first to the second, the last beyond the border and therefore 1; the rows 1/4 and 3/4.
    labels = torch.tensor([[[1, 2], [3, 4]]])
    parameters = parameters_of((2, 2), (2, 3), [[4, 4]], [[1, 1]], [True])
    assert replay(labels, parameters).tolist() == [[[2, 2, 1], [4, 4, 3]]]
    assert replay(labels.double(), parameters).tolist() == [[[2.5, 2.25, 1.75], [3.5, 3.25, 2.75]]]
    # Back: the centre of pixel (0, 0) is on the corner of four pixels of the enlarged image; the one to the right and
    # below counts: row 1, column 1 of it, row 0, column 2 of the mirrored view. (0, 1): row 1, column 3.
    restored, valid = replay_inverse(torch.tensor([[[5, 6, 7], [8, 9, 10]]]), parameters)
    assert restored.tolist() == [[[7, 5], [255, 255]]]
    assert valid.tolist() == [[[True, True], [False, False]]]


@settings(max_examples=60, deadline=None)
@given(geometries(), st.sampled_from(["bilinear", "nearest"]), st.sampled_from([(), (2,), (2, 3)]))
def test_replay_by_loops(parameters, mode, middle):
    tensor = torch.randn(3, *middle, *parameters.image_size, generator=generator(), dtype=torch.float64)
    out = replay(tensor, parameters, mode=mode, fill=-7.0)
    for b in range(3):
        expected = view_by_loops(tensor[b].numpy(), parameters.size, *of_image(parameters, b), mode, -7.0)
        if mode == "nearest":
            assert np.array_equal(out[b].numpy(), expected)
        np.testing.assert_allclose(out[b].numpy(), expected, rtol=0, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(geometries(), st.sampled_from(["bilinear", "nearest"]), st.sampled_from([(), (2,), (2, 3)]))
def test_replay_inverse_by_loops(parameters, mode, middle):
    tensor = torch.randn(3, *middle, *parameters.size, generator=generator(), dtype=torch.float64)
    out, valid = replay_inverse(tensor, parameters, mode=mode, fill=-7.0)
    for b in range(3):
        expected, where = inverse_by_loops(
            tensor[b].numpy(), parameters.image_size, *of_image(parameters, b), mode, -7.0
        )
        assert np.array_equal(valid[b].numpy(), where)
        np.testing.assert_allclose(out[b].numpy(), expected, rtol=0, atol=0 if mode == "nearest" else 1e-14)


@settings(max_examples=60, deadline=None)
@given(geometries())
def test_labels_go_where_the_image_goes(parameters):
    # An image that shows the labels, and one that shows each label's place, one-hot.
    labels = torch.randint(0, 19, (3, *parameters.image_size), generator=generator())
    view = replay(labels, parameters)
    image = labels[:, None].expand(-1, 3, -1, -1).float()
    assert torch.equal(replay(image, parameters, mode="nearest", fill=255)[:, 0].long(), view)
    # Bilinear: the nearest pixel has the greatest weight of all, at least a quarter (ties at centres between two).
    pixels = parameters.image_size[0] * parameters.image_size[1]
    places = torch.arange(pixels).view(1, *parameters.image_size).expand(3, -1, -1)
    weights = replay(torch.eye(pixels).view(1, pixels, *parameters.image_size).expand(3, -1, -1, -1), parameters)
    where = replay(places, parameters)
    inside = where != 255
    own = weights.gather(1, where.clamp(max=pixels - 1)[:, None])[:, 0]
    assert (own[inside] >= weights.amax(1)[inside] - 1e-6).all()
    assert (weights.sum(1)[~inside] == 0).all()
    torch.testing.assert_close(weights.sum(1)[inside], torch.ones(int(inside.sum())))


@pytest.mark.parametrize("scaled", [(7, 11), (14, 33), (13, 29)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resizing_as_torch_does(scaled, mode):
    images = torch.randn(2, 3, 7, 11, generator=generator(), dtype=torch.float64)
    parameters = parameters_of((7, 11), scaled, [scaled] * 2, [[0, 0]] * 2, [False] * 2)
    expected = torch.nn.functional.interpolate(images, scaled, mode={"nearest": "nearest-exact"}.get(mode, mode))
    torch.testing.assert_close(replay(images, parameters, mode=mode), expected, rtol=0, atol=1e-13)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_identity_is_bit_for_bit(dtype, mode):
    tensor = torch.randn(2, 3, 7, 9, generator=generator()).to(dtype)
    awkward = [float("inf"), -float("inf"), -0.0, 0.0, torch.finfo(dtype).smallest_normal / 4, torch.finfo(dtype).max]
    tensor[0, 0, 1:3, 2:5] = torch.tensor(awkward, dtype=torch.float64).to(dtype).view(2, 3)
    same = identity((7, 9))
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    for out in (replay(tensor, same, mode=mode), replay_inverse(tensor, same, mode=mode)[0]):
        assert out.dtype == dtype
        assert torch.equal(out.view(bits), tensor.view(bits))
        assert out.data_ptr() != tensor.data_ptr()
    assert replay_inverse(tensor, same)[1].all()
    mirrored = same._replace(flipped=torch.tensor([True, False]))
    out = replay(tensor, mirrored, mode=mode)
    assert torch.equal(out[0].view(bits), tensor[0].flip(-1).view(bits))
    assert torch.equal(replay_inverse(out, mirrored, mode=mode)[0].view(bits), tensor.view(bits))
    for turns in range(4):  # the eight positions, each of an image in one batch, of views that are not square
        size = (9, 7) if turns % 2 else (7, 9)
        flips = [[True, False], [False, True]]
        moved = parameters_of((7, 9), size, [(7, 9)] * 2, [[0, 0]] * 2, *flips, [turns] * 2)
        out = replay(tensor, moved, mode=mode)
        expected = torch.stack([tensor[0].flip(-1), tensor[1].flip(-2)]).rot90(turns, (-2, -1))
        assert torch.equal(out.view(bits), expected.contiguous().view(bits))
        restored, valid = replay_inverse(out, moved, mode=mode)
        assert torch.equal(restored.view(bits), tensor.view(bits))
        assert valid.all()


def test_a_turned_view_that_is_not_square_by_hand():
    # A view of 2 rows and 3 columns, turned once counterclockwise: a window of 3 rows and 2 columns, whose last column
    # becomes the first row. At corner (1, 0) of the image it sticks out by one row.
    labels = torch.tensor([[[1, 2], [3, 4], [5, 6]]])
    parameters = parameters_of((3, 2), (2, 3), [[3, 2]], [[1, 0]], [False], [False], [1])
    view = replay(labels, parameters)
    assert view.tolist() == [[[4, 6, 255], [3, 5, 255]]]
    restored, valid = replay_inverse(view, parameters)
    assert restored.tolist() == [[[255, 255], [3, 4], [5, 6]]]
    assert valid.tolist() == [[[False, False], [True, True], [True, True]]]
    assert torch.equal(replay(labels, parameters._replace(quarter_turns=torch.tensor([-3]))), view)


def test_beyond_the_outermost_centres_the_border_is_repeated_bit_for_bit():
    tensor = torch.rand(2, 3, 1, 2, generator=generator())
    parameters = parameters_of((1, 2), (7, 18), [[7, 18]] * 2, [[0, 0]] * 2, [False] * 2)
    out = replay(tensor, parameters)
    assert torch.equal(out[..., :5], tensor[..., :1].expand(-1, -1, 7, 5))  # centre of the first: column 4
    assert torch.equal(out[..., 13:], tensor[..., 1:].expand(-1, -1, 7, 5))


def test_infinite_logits_stay_infinite_and_none_becomes_nan():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0] = -float("inf")
    parameters = parameters_of((1, 4), (1, 7), [[1, 7]], [[0, 0]], [False])
    out = replay(logits, parameters)
    assert torch.equal(out[0, 0], torch.full((1, 7), -float("inf")))
    assert torch.equal(out[0, 1], torch.zeros(1, 7))


@settings(max_examples=80, deadline=None)
@given(geometries(least=10))
def test_round_trip_of_labels_from_scale_one_up(parameters):
    labels = torch.randint(0, 19, (3, *parameters.image_size), generator=generator())
    view = replay(labels, parameters)
    restored, valid = replay_inverse(view, parameters)
    assert torch.equal(restored[valid], labels[valid])
    assert (restored[~valid] == 255).all()
    # Valid is what the view shows, no more: everything whose place a pixel of it holds.
    for b in range(3):
        shown = inverse_by_loops(view[b].numpy(), parameters.image_size, *of_image(parameters, b), "nearest", 255)[1]
        assert np.array_equal(valid[b].numpy(), shown)


@settings(max_examples=80, deadline=None)
@given(geometries(most=10))
def test_round_trip_below_scale_one(parameters):
    # Labels that tell the place; how far off is what comes back? And the view comes back exactly.
    for dim in (0, 1):
        place = (
            torch.arange(parameters.image_size[dim]).view(-1, 1) if dim == 0 else torch.arange(parameters.image_size[1])
        )
        place = place.expand(3, *parameters.image_size)
        view = replay(place, parameters)
        restored, valid = replay_inverse(view, parameters)
        scale = parameters.scaled[:, dim] / parameters.image_size[dim]
        off = ((restored - place).abs() * valid).flatten(1).amax(1)
        assert (off <= 0.5 + 0.5 / scale + 1e-6).all()
    views = torch.randint(0, 19, (3, *parameters.size), generator=generator())
    seen = replay(replay_inverse(views, parameters)[0], parameters)
    inside = replay(torch.ones(3, *parameters.image_size), parameters, mode="nearest") > 0
    assert torch.equal(seen[inside], views[inside])


def test_round_trip_at_half_scale_is_at_most_one_pixel_off():
    place = torch.arange(8).expand(1, 8, 8)
    parameters = parameters_of((8, 8), (4, 4), [[4, 4]], [[0, 0]], [True])
    restored, valid = replay_inverse(replay(place, parameters), parameters)
    assert valid.all()
    assert (restored - place).abs().max() == 1


def test_argmax_of_replayed_probabilities_is_the_replayed_label_away_from_edges():
    labels = torch.zeros(1, 20, 30, dtype=torch.long)
    labels[:, :, 15:] = 1
    probs = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    for scaled in ((13, 18), (20, 30), (31, 46)):
        parameters = parameters_of((20, 30), (12, 16), [scaled], [[1, 2]], [True])
        assert torch.equal(replay(probs, parameters).argmax(1), replay(labels, parameters))


OLD_TORCH = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12), reason="torch gathers no uint16 yet"
)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
        pytest.param(torch.uint16, marks=OLD_TORCH),
        torch.complex64,
    ],
)
def test_dtypes_without_bilinear(dtype):
    tensor = torch.randint(0, 2, (2, 5, 6), generator=generator()).to(dtype)
    parameters = parameters_of((5, 6), (4, 9), [[8, 8], [3, 5]], [[2, 0], [0, 0]], [True, False])
    fill = 255 if dtype not in (torch.bool, torch.complex64) else 0
    out = replay(tensor, parameters)
    back, valid = replay_inverse(out, parameters)
    assert out.dtype == back.dtype == dtype
    for b in range(2):
        expected = view_by_loops(tensor[b].numpy(), (4, 9), *of_image(parameters, b), "nearest", fill)
        assert np.array_equal(out[b].numpy(), expected)
    if dtype != torch.complex64:
        assert (back[~valid] == fill).all()


def test_fill():
    parameters = parameters_of((2, 2), (3, 3), [[2, 2]], [[0, 0]], [False])

    def last(tensor, **arguments):
        view = replay(tensor, parameters, **arguments)
        smaller = parameters._replace(image_size=(4, 4), size=(2, 2), scaled=torch.tensor([[4, 4]]))
        assert torch.equal(replay_inverse(tensor, smaller, **arguments)[0][..., 3, 3], view[..., 2, 2])
        return view[..., 2, 2].flatten()[0].tolist()

    integers = torch.ones(1, 2, 2, dtype=torch.uint8)
    assert last(integers) == 255
    assert last(integers.float()) == 0
    assert last(integers.bool()) is False
    assert last(integers.long()[:, None]) == last(integers[:, None]) == 255  # label maps (B, 1, H, W)
    assert last(integers[:, None].expand(-1, 3, -1, -1)) == 0  # an image in uint8, not a label map
    assert last(integers, fill=7) == 7
    assert last(integers.float(), fill=0.5) == 0.5
    assert last(integers.float(), fill=-float("inf")) == -float("inf")


def random_parameters(batch=3, image_size=(9, 11), size=(8, 7)):
    scaled = torch.randint(5, 22, (batch, 2), generator=generator(3)).tolist()
    corner = [[max(0, s - n) // 2 for s, n in zip(row, size, strict=True)] for row in scaled]
    return parameters_of(image_size, size, scaled, corner, [b % 2 == 0 for b in range(batch)])


def test_every_field_counts():
    tensor, parameters = torch.randn(3, 2, 9, 11, generator=generator()), random_parameters()
    out = replay(tensor, parameters)
    for change in (
        {"scaled": parameters.scaled + 1},
        {"corner": parameters.corner + 1},
        {"flipped": ~parameters.flipped},
        {"vertically_flipped": ~parameters.vertically_flipped},
        {"quarter_turns": parameters.quarter_turns + 1},
        {"quarter_turns": parameters.quarter_turns + 2},
        {"size": (9, 7)},
    ):
        other = replay(tensor, parameters._replace(**change))
        assert other.shape != out.shape or all(not torch.equal(*pair) for pair in zip(other, out, strict=True))
    assert not torch.equal(out, replay(tensor, parameters, mode="nearest"))


def test_bfloat16_and_layouts():
    tensor, parameters = torch.randn(3, 2, 9, 11, generator=generator()), random_parameters()
    half = tensor.bfloat16()
    assert torch.equal(replay(half, parameters), replay(half.float(), parameters).bfloat16())
    for call, source in ((replay, tensor), (lambda t, p: replay_inverse(t, p)[0], replay(tensor, parameters))):
        expected = call(source, parameters)
        last = source.contiguous(memory_format=torch.channels_last)
        out = call(last, parameters)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, expected)
        transposed = source.transpose(-1, -2).contiguous().transpose(-1, -2)
        assert torch.equal(call(transposed, parameters), expected)
        assert call(transposed, parameters).is_contiguous()
        assert torch.equal(call(source[:, :1].expand(-1, 4, -1, -1), parameters), expected[:, :1].expand(-1, 4, -1, -1))


def test_gradient():
    parameters = random_parameters(2, (4, 5), (5, 4))
    tensor = torch.randn(2, 2, 4, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    view = torch.randn(2, 2, 5, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    for mode in ("bilinear", "nearest"):
        assert torch.autograd.gradcheck(lambda x, mode=mode: replay(x, parameters, mode=mode), tensor)
        assert torch.autograd.gradcheck(lambda x, mode=mode: replay_inverse(x, parameters, mode=mode)[0], view)


def test_no_images_and_inputs_are_not_changed():
    none = parameters_of((4, 5), (3, 2), [], [], [])
    assert replay(torch.zeros(0, 7, 4, 5), none).shape == (0, 7, 3, 2)
    restored, valid = replay_inverse(torch.zeros(0, 3, 2, dtype=torch.long), none)
    assert restored.shape == valid.shape == (0, 4, 5)
    parameters, tensor = random_parameters(), torch.randn(3, 2, 9, 11)
    before = [part.clone() for part in (tensor, *parameters[2:])]
    view = replay(tensor, parameters)
    kept = view.clone()
    replay_inverse(view, parameters)[0].fill_(3)
    assert torch.equal(view, kept)
    assert all(torch.equal(*pair) for pair in zip(before, (tensor, *parameters[2:]), strict=True))


def test_a_window_off_the_scaled_image_is_empty():
    parameters = parameters_of((4, 5), (2, 2), [[4, 5]], [[4, 0]], [False])
    assert (replay(torch.ones(1, 4, 5), parameters) == 0).all()
    assert not replay_inverse(torch.ones(1, 2, 2), parameters)[1].any()
    above = parameters._replace(corner=torch.tensor([[-2, -1]]))
    assert replay(torch.ones(1, 4, 5), above).sum() == 0
    assert replay(torch.ones(1, 4, 5), above._replace(corner=torch.tensor([[-1, -1]]))).sum() == 1


@pytest.mark.parametrize("call", [replay, replay_inverse])
def test_bad_arguments(call):
    parameters = identity((4, 5))
    tensor = torch.zeros(2, 3, 4, 5)
    with pytest.raises(TypeError, match=r"`tensor`: expected a torch.Tensor, got list"):
        call([1], parameters)
    with pytest.raises(TypeError, match=r"`parameters`: expected ViewParameters, got tuple"):
        call(tensor, tuple(parameters))
    for shape in ((4, 5), (3, 4, 5), (2, 4, 4), (2, 3, 5, 5)):
        with pytest.raises(ValueError, match=r"`tensor`: expected \(B, …, H, W\) = \(2, …, 4, 5\), got"):
            call(torch.zeros(shape), parameters)
    with pytest.raises(ValueError, match=r"`tensor`: expected device cpu, got meta"):
        call(tensor.to("meta"), parameters)
    with pytest.raises(ValueError, match=r"`mode`: expected one of 'bilinear', 'nearest', got 'bicubic'"):
        call(tensor, parameters, mode="bicubic")
    with pytest.raises(
        TypeError, match=r"`tensor`: expected a floating-point dtype with mode 'bilinear', got torch.int64"
    ):
        call(tensor.long(), parameters, mode="bilinear")
    with pytest.raises(TypeError, match="`fill`: expected a number, got str"):
        call(tensor, parameters, fill="0")
    with pytest.raises(ValueError, match=r"`fill`: expected a value that torch.uint8 can hold, got -1"):
        call(tensor.byte(), parameters, fill=-1)


def there_and_back(tensor, labels, parameters):
    view = replay(tensor, parameters)
    return view, replay(labels, parameters), *replay_inverse(view, parameters)


def compiled_equals_eager(backend, cases):
    torch.compiler.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, backend=backend)
    for batch, image_size, size in cases:
        parameters = random_parameters(batch, image_size, size)
        tensor = torch.randn(batch, 2, *image_size, generator=generator())
        labels = torch.randint(0, 19, (batch, *image_size), generator=generator())
        expected = there_and_back(tensor, labels, parameters)
        for ours, theirs in zip(compiled(tensor, labels, parameters), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


def test_traces_to_one_graph():
    compiled_equals_eager("aot_eager", [(3, (9, 11), (8, 7)), (2, (12, 10), (5, 6))])


@pytest.mark.slow
def test_compiled():
    compiled_equals_eager("inductor", [(3, (9, 11), (8, 7))])
