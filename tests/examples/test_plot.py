"""What the pictures show: the artists' data, not pixels."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from cudeform import arrays, plot
from cudeform.plans.points import Points, sampling_points


@pytest.fixture
def axes():
    return Figure().add_subplot()


def artist(axes, label):
    (found,) = (c for c in axes.collections if c.get_label() == label)
    return found


def positions(axes, label):
    """(y, x) of every marker."""
    return np.asarray(artist(axes, label).get_offsets())[:, ::-1]


def reads(offset, i, j, *, kernel, stride, padding, dilation, group=0, image=0):
    """Where the taps of one output pixel read, from the definition of the operator."""
    taps = []
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            t = 2 * ((group * kernel[0] + a) * kernel[1] + b)
            y = i * stride[0] - padding[0] + a * dilation[0] + offset[image, t, i, j]
            x = j * stride[1] - padding[1] + b * dilation[1] + offset[image, t + 1, i, j]
            taps.append((y, x))
    return np.array(taps)


GEOMETRY = dict(kernel=(2, 3), stride=(2, 1), padding=(3, 1), dilation=(1, 2))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_taps_are_where_the_operator_reads(axes, rng, layout):
    offset = rng.standard_normal((2, 2 * 2 * 6, 5, 7))
    given = offset if layout == "NCHW" else np.moveaxis(offset, 1, -1)
    pixels = [(0, 0), (4, 6), (3, 1)]
    options = dict(GEOMETRY, image=1, group=1)
    returned = plot.sampling_points(
        axes, given, (20, 20), pixels=iter(pixels), layout=layout, **options
    )
    assert returned is axes
    expected = np.concatenate([reads(offset, i, j, **options) for i, j in pixels])
    np.testing.assert_allclose(positions(axes, "taps"), expected)


def test_origins_are_the_middles_of_undeformed_kernels(axes, rng):
    offset = rng.standard_normal((1, 12, 5, 7))
    plot.sampling_points(axes, offset, (20, 20), pixels=[(2, 3), (0, 0)], **GEOMETRY)
    middles = [reads(0 * offset, i, j, **GEOMETRY).mean(0) for i, j in ((2, 3), (0, 0))]
    np.testing.assert_allclose(positions(axes, "origins"), middles)

    lines = artist(axes, axes.collections[0].get_label()).get_segments()
    ends = np.array([line[-1][::-1] for line in lines])
    np.testing.assert_allclose(ends, positions(axes, "taps"))
    starts = np.array([line[0][::-1] for line in lines])
    np.testing.assert_allclose(starts, np.repeat(middles, 6, axis=0))


def test_origins_can_be_left_out(axes):
    plot.sampling_points(axes, np.zeros((1, 18, 4, 4)), (6, 6), origins=False)
    assert [c.get_label() for c in axes.collections] == ["taps"]


def test_pixels_default_to_an_even_spread(axes):
    plot.sampling_points(axes, np.zeros((1, 2, 40, 3)), (40, 3), kernel=(1, 1))
    rows, columns = positions(axes, "origins").T
    assert sorted(set(rows)) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert sorted(set(columns)) == [0, 1, 2]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_mask_colours_the_taps(axes, rng, layout):
    offset, mask = np.zeros((1, 36, 4, 4)), rng.uniform(size=(1, 18, 4, 4))
    expected = mask[0, 9:, [1, 3], [2, 0]].reshape(-1)
    if layout == "NHWC":
        offset, mask = (np.moveaxis(array, 1, -1) for array in (offset, mask))
    plot.sampling_points(
        axes, offset, (6, 6), mask=mask, group=1, pixels=[(1, 2), (3, 0)], layout=layout
    )
    taps = artist(axes, "taps")
    np.testing.assert_allclose(taps.get_array(), expected)
    assert taps.get_clim() == (0.0, 1.0)


def test_taps_outside_the_image_are_rings(axes):
    offset = np.zeros((1, 2, 1, 3))
    offset[0, 1, 0] = -1.5, 0.0, 0.5  # x: -1.5 and 2.5 are outside or at the edge of 3 pixels
    plot.sampling_points(
        axes, offset, (1, 3), kernel=(1, 1), pixels=[(0, 0), (0, 1), (0, 2)], mask=offset[:, :1]
    )
    assert artist(axes, "taps").get_facecolors()[:, 3].tolist() == [0.0, 1.0, 1.0]
    assert artist(axes, "taps").get_edgecolors()[0, :3].tolist() != [0.0, 0.0, 0.0]


def test_cupy_arrays_are_brought_to_the_host(axes):
    class OnDevice:
        dtype = np.dtype(float)

        def get(self):
            return np.full((1, 2, 2, 2), 0.25)

    known = arrays.Kind("cupy", "cuda", lambda array: "cuda:0", lambda array: array.get())
    arrays.register(OnDevice, known)
    plot.sampling_points(axes, OnDevice(), (2, 2), kernel=(1, 1), pixels=[(1, 0)])
    arrays.register(OnDevice, None)
    assert positions(axes, "taps").tolist() == [[1.25, 0.25]]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            dict(offset=np.zeros((1, 20, 4, 4))),
            ValueError,
            "`offset` with channels a multiple of 18",
        ),
        (dict(offset=np.zeros((18, 4, 4))), ValueError, "`offset` to have 4 axes"),
        (dict(mask=np.zeros((1, 8, 4, 4))), ValueError, r"`mask` of shape \(1, 9, 4, 4\)"),
        (dict(layout="CHW"), ValueError, "`layout` to be one of 'NCHW', 'NHWC'"),
        (dict(padding=-1), ValueError, "`padding` to be at least 0"),
        (dict(stride=1.5), TypeError, "`stride` to be an integer"),
    ],
)
def test_bad_arguments(axes, changed, error, message):
    arguments = dict(offset=np.zeros((1, 18, 4, 4)), size=(6, 6))
    with pytest.raises(error, match="sampling_points: expected " + message):
        plot.sampling_points(axes, **{**arguments, **changed})


def test_geometry_names_every_axis(rng):
    """`geometry.sampling_points` on all of an offset at once."""
    offset = rng.standard_normal((2, 2 * 3 * 6, 4, 5))
    points = Points(
        batch=2, channels=3, height=9, width=9, out_height=4, out_width=5, kernel=(2, 3),
        stride=(2, 1), origin=(-3, -1), dilation=(1, 2), offset_groups=3,
    )  # fmt: skip
    located = sampling_points(points, offset)
    assert located.shape == (2, 3, 2, 3, 4, 5, 2)
    expected = reads(offset, 2, 4, **GEOMETRY, image=1, group=2).reshape(2, 3, 2)
    np.testing.assert_allclose(located[1, 2, :, :, 2, 4], expected)


@pytest.mark.parametrize("mask", [None, np.ones((1, 9, 4, 4))])
def test_no_pixels_draw_nothing(axes, mask):
    plot.sampling_points(axes, np.zeros((1, 18, 4, 4)), (6, 6), mask=mask, pixels=[])
    assert len(positions(axes, "taps")) == len(positions(axes, "origins")) == 0
