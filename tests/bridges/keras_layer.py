"""The Keras layer on the backend of KERAS_BACKEND, a program of its own: a process has one."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from cudeform.keras import DeformConv2D

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


def learns_and_reloads(data_format, policy=None):
    """On images of any size: fits, moves its taps, saves, loads, and predicts the same."""
    x, network = images(data_format), model(data_format, policy)
    y = np.abs(x).mean(axis=(1, 2, 3))
    network.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    losses = network.fit(x, y, epochs=5, batch_size=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    layer = network.layers[1]
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


LOAD = """
import sys
import cudeform  # and nothing else of ours
import keras
import numpy as np

folder, *programs = sys.argv[1:]
given, expected = np.load(folder + "/given.npy"), np.load(folder + "/expected.npy")
network = keras.models.load_model(folder + "/model.keras")
np.testing.assert_allclose(network.predict(given, verbose=0), expected, rtol=1e-5, atol=1e-6)
for program in programs:
    import torch

    found = torch.export.load(program).module()(torch.from_numpy(given))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
"""


def loads_in_another_process():
    """What can be saved; what cannot says so."""
    x, network = images("channels_last"), model("channels_last", size=(9, 10))
    layer = network.layers[1]
    layer.set_weights([RNG.standard_normal(weight.shape) / 9 for weight in layer.get_weights()])
    with tempfile.TemporaryDirectory() as folder:
        programs = []
        if keras.backend.backend() == "torch":
            programs = [f"{folder}/program.pt2"]
            signature = [keras.InputSpec(shape=x.shape, dtype="float32")]
            network.export(*programs, format="torch", verbose=False, input_signature=signature)
        elif importlib.util.find_spec("tensorflow"):
            refused = {"tensorflow": "a SavedModel cannot hold it", "jax": "`jax.export` cannot"}
            try:
                network.export(f"{folder}/program", verbose=False)
            except NotImplementedError as error:
                assert refused[keras.backend.backend()] in str(error)
            else:
                raise AssertionError("a program that no other process can run")
        np.save(f"{folder}/given.npy", x)
        np.save(f"{folder}/expected.npy", network.predict(x, verbose=0))
        network.save(f"{folder}/model.keras")
        subprocess.run([sys.executable, "-c", LOAD, folder, *programs], check=True)


def config_round_trip():
    layer = DeformConv2D(
        8, (3, 5), strides=(2, 1), padding="same", groups=2, offset_groups=2, modulated=True
    )
    config = json.loads(json.dumps(layer.get_config()))
    again = DeformConv2D.from_config(config)
    assert again.get_config() == layer.get_config()
    assert again.offset_groups == 2 and again.modulated and again.strides == (2, 1)


def refuses():
    layer = DeformConv2D(4, 3, offset_groups=3)
    try:
        layer.build((None, 8, 8, 4))
    except ValueError as error:
        assert "DeformConv2D: expected `offset_groups` to divide the 4 channels" in str(error)
    else:
        raise AssertionError("offset_groups that do not divide the channels")


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
        learns_and_reloads(data_format, policies[data_format])
    starts_as_plain_convolution("channels_last", (10, 11), padding="same", strides=3)
    loads_in_another_process()
    config_round_trip()
    refuses()
    if keras.backend.backend() == "tensorflow":
        has_no_second_derivatives()
    print("ok", keras.backend.backend())


if __name__ == "__main__":
    main()
