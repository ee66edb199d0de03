"""The Keras layers on the backend of KERAS_BACKEND, a program of its own: a process has one."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from cudeform import layers
from cudeform.keras import DeformConv2D, MSDeformAttn

RNG = np.random.default_rng(0)
FORMATS = ("channels_last", "channels_first")


def images(data_format, size=(9, 10), channels=4):
    shape = (6, *size, channels) if data_format == "channels_last" else (6, channels, *size)
    return RNG.standard_normal(shape).astype(np.float32)


def starts_as_plain_convolution(data_format, size=(9, 10), **options):
    """Equal to keras.layers.Conv2D with the same weights: also where Keras puts its padding."""
    x = images(data_format, size)
    for modulated in (False, True):
        layer = DeformConv2D(6, 3, data_format=data_format, modulated=modulated, **options)
        plain = keras.layers.Conv2D(6, 3, data_format="channels_last", **options)
        result = np.asarray(keras.ops.convert_to_numpy(layer(x)))
        assert result.shape == layer.compute_output_shape(x.shape)
        last = x if data_format == "channels_last" else x.transpose(0, 2, 3, 1)
        plain.build(last.shape)
        plain.set_weights(layer.get_weights()[: len(plain.weights)])
        expected = keras.ops.convert_to_numpy(plain(last))
        if data_format == "channels_first":
            expected = expected.transpose(0, 3, 1, 2)
        factor = 0.5 if modulated else 1
        np.testing.assert_allclose(result, factor * expected, rtol=1e-4, atol=1e-5)


def model(data_format, policy=None, size=(None, None), **options):
    keras.utils.set_random_seed(1)
    shape = (*size, 4) if data_format == "channels_last" else (4, *size)
    inputs = keras.Input(shape)
    options = {"offset_groups": 2, "modulated": True, "activation": "relu", **options}
    hidden = DeformConv2D(
        6, 3, padding="same", strides=2, data_format=data_format, dtype=policy, **options
    )(inputs)
    hidden = keras.layers.GlobalAveragePooling2D(data_format=data_format)(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(hidden))


SHAPES = [(5, 6), (3, 2)]
PIXELS = 36  # of both levels


def tokens(queries=PIXELS):
    return RNG.standard_normal((6, queries, 8)).astype(np.float32)


def attention(policy=None):
    """A network in which each pixel of two levels looks where it wants."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((PIXELS, 8))
    middles = keras.layers.Dense(2, activation="sigmoid")(inputs)
    middles = keras.layers.Reshape((PIXELS, 1, 2))(middles)
    hidden = MSDeformAttn(4, 2, 3, dtype=policy)(inputs, middles, inputs, spatial_shapes=SHAPES)
    hidden = keras.layers.GlobalMaxPooling1D()(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(hidden))


def attends_as_the_plain_layer():
    """Which starts where torch's module does; beside that boxes, masks and sizes in an array."""
    layer, plain = MSDeformAttn(4, 2, 3), layers.MSDeformAttn(8, 2, 4, 3)
    query, middles, features = tokens(5), RNG.random((6, 5, 2, 2), np.float32), tokens()

    def call(*arrays, **options):
        options = {"spatial_shapes": SHAPES, **options}
        return keras.ops.convert_to_numpy(layer(*arrays, **options))

    def parameters():
        found = {}
        for name in plain.parts:
            dense = getattr(layer, name)
            found[f"{name}.weight"] = keras.ops.convert_to_numpy(dense.kernel).T
            found[f"{name}.bias"] = keras.ops.convert_to_numpy(dense.bias)
        return found

    result = call(query, middles, features)
    assert result.shape == layer.compute_output_shape(query.shape)
    params, begins = parameters(), plain.init(RNG)
    for name in begins:
        if not name.endswith("proj.weight"):
            np.testing.assert_array_equal(params[name], begins[name], err_msg=name)
    layer.set_weights([w + RNG.standard_normal(w.shape) / 5 for w in layer.get_weights()])
    expected, _ = plain.forward(parameters(), query, middles, features, SHAPES)
    result = call(query, middles, features)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    found = call(query, middles, features, spatial_shapes=np.array(SHAPES, np.int32))
    np.testing.assert_array_equal(found, result)
    # Boxes in which an offset of a part of them is one of a pixel of the level
    boxes = np.empty((6, 5, 2, 4), np.float32)
    boxes[..., :2], boxes[..., 2:] = middles, [[6 / w, 6 / h] for h, w in SHAPES]
    np.testing.assert_allclose(call(query, boxes, features), result, rtol=1e-4, atol=1e-5)
    image = np.ones((6, PIXELS), bool)
    image[:, 20:30] = False
    masked = call(query, middles, features, features_mask=image)
    assert np.abs(masked - result).max() > 1e-3
    features[:, 20:30] = np.nan
    np.testing.assert_array_equal(call(query, middles, features, features_mask=image), masked)


def learns_and_reloads(x, network, policy=None):
    """It fits, moves where it reads, saves, loads, and predicts the same."""
    layer = own(network)
    y = np.abs(x).mean(axis=tuple(range(1, x.ndim)))
    network.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    losses = network.fit(x, y, epochs=5, batch_size=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(np.abs(weight).max() > 0 for weight in layer.get_weights())
    if policy is not None:
        assert layer.compute_dtype == policy.removeprefix("mixed_")
        assert {variable.dtype for variable in layer.weights} == {"float32"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        network.save(path)
        again = keras.models.load_model(path)
    found, expected = again.predict(x, verbose=0), network.predict(x, verbose=0)
    np.testing.assert_array_equal(found, expected)


def own(network):
    """The layer of ours."""
    (layer,) = (a for a in network.layers if isinstance(a, (DeformConv2D, MSDeformAttn)))
    return layer


LOAD = """
import sys
from pathlib import Path
import cudeform  # and nothing else of ours
import keras
import numpy as np

for folder in Path(sys.argv[1]).iterdir():
    given, expected = np.load(folder / "given.npy"), np.load(folder / "expected.npy")
    network = keras.models.load_model(folder / "model.keras")
    np.testing.assert_allclose(network.predict(given, verbose=0), expected, rtol=1e-5, atol=1e-6)
    if (folder / "program.pt2").exists():
        import torch

        program = torch.export.load(folder / "program.pt2").module()
        found = program(torch.from_numpy(given)).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
"""


def loads_in_another_process():
    """What can be saved; what cannot says so."""
    networks = [(images("channels_last"), model("channels_last", size=(9, 10)))]
    networks.append((tokens(), attention()))
    with tempfile.TemporaryDirectory() as folder:
        for x, network in networks:
            path = Path(folder) / own(network).name
            path.mkdir()
            save(x, network, path)
        subprocess.run([sys.executable, "-c", LOAD, folder], check=True)


def save(x, network, folder):
    layer = own(network)
    layer.set_weights([RNG.standard_normal(weight.shape) / 9 for weight in layer.get_weights()])
    if keras.backend.backend() == "torch":
        signature = [keras.InputSpec(shape=x.shape, dtype="float32")]
        program = folder / "program.pt2"
        network.export(program, format="torch", verbose=False, input_signature=signature)
    elif importlib.util.find_spec("tensorflow"):
        refused = {"tensorflow": "a SavedModel cannot hold it", "jax": "`jax.export` cannot"}
        try:
            network.export(f"{folder}/program", verbose=False)
        except NotImplementedError as error:
            assert refused[keras.backend.backend()] in str(error)
        else:
            raise AssertionError("a program that no other process can run")
    np.save(folder / "given.npy", x)
    np.save(folder / "expected.npy", network.predict(x, verbose=0))
    network.save(folder / "model.keras")


def config_round_trip():
    layer = DeformConv2D(
        8, (3, 5), strides=(2, 1), padding="same", groups=2, offset_groups=2, modulated=True
    )
    config = json.loads(json.dumps(layer.get_config()))
    again = DeformConv2D.from_config(config)
    assert again.get_config() == layer.get_config()
    assert again.offset_groups == 2 and again.modulated and again.strides == (2, 1)
    config = json.loads(json.dumps(MSDeformAttn(2, 3, 5, dtype="mixed_float16").get_config()))
    again = MSDeformAttn.from_config(config)
    assert (again.num_heads, again.num_levels, again.num_points) == (2, 3, 5)
    assert again.dtype_policy.name == "mixed_float16"


def refuses():
    attend, query = MSDeformAttn(4, 2, 3), np.zeros((1, 5, 8), np.float32)
    for call, message in (
        (
            lambda: DeformConv2D(4, 3, offset_groups=3).build((None, 8, 8, 4)),
            "DeformConv2D: expected `offset_groups` to divide the 4 channels",
        ),
        (
            lambda: MSDeformAttn(3).build((None, 5, 8), (None, 7, 8)),
            "MSDeformAttn: expected `query` with channels divisible by `num_heads` = 3",
        ),
        (
            lambda: attend(query, query[..., None, :3], query, spatial_shapes=SHAPES),
            "MSDeformAttn: expected `reference` of shape (N, Lq, 2 or 1, 2 or 4), got (1, 5, 1, 3)",
        ),
    ):
        try:
            call()
        except ValueError as error:
            assert message in str(error), error
        else:
            raise AssertionError(message)


def has_no_second_derivatives():
    """An error: part of such a derivative was left out before, and nothing said so."""
    import tensorflow as tf

    layer, x = DeformConv2D(2, 3), tf.constant(images("channels_last"))
    with tf.GradientTape() as second:
        second.watch(x)
        with tf.GradientTape() as first:
            first.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2)
        slope = tf.reduce_sum(first.gradient(loss, x) ** 2)
    try:
        second.gradient(slope, x)
    except NotImplementedError as error:
        assert "DeformConv2D: no second derivatives on TensorFlow" in str(error)
    else:
        raise AssertionError("a second derivative")


def main():
    policies = {"channels_last": "mixed_bfloat16", "channels_first": None}
    for data_format in FORMATS:
        starts_as_plain_convolution(data_format, padding="same", strides=2)
        starts_as_plain_convolution(data_format, dilation_rate=(2, 1), groups=2, use_bias=False)
        network, policy = model(data_format, policies[data_format]), policies[data_format]
        learns_and_reloads(images(data_format), network, policy)
    starts_as_plain_convolution("channels_last", (10, 11), padding="same", strides=3)
    attends_as_the_plain_layer()
    network = attention("mixed_bfloat16")
    learns_and_reloads(tokens(), network, "mixed_bfloat16")
    loads_in_another_process()
    config_round_trip()
    refuses()
    if keras.backend.backend() == "tensorflow":
        has_no_second_derivatives()
    print("ok", keras.backend.backend())


if __name__ == "__main__":
    main()
