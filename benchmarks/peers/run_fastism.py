"""fastISM 0.5.1 with TensorFlow 2.15: the models that are plain sequences of layers, with the shared weights.

fastISM takes one character at a time and gives outputs for all positions: four calls make all substitutions. A
``Flatten`` ends the fully convolutional models, since fastISM wants a layer of that kind.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import (
    Memory,
    load_sequences,
    load_weights,
    run,
    save_scores,
    timings,
    versions,
)

# Layers in order: a name is looked up among the weights, name@d has dilation d, pool<k> is max pooling.
LAYERS = {
    "OneLayer": "conv",
    "ToyNet": "conv1 relu conv2 relu conv3",
    "DeepSEA": "conv1 relu pool4 conv2 relu pool4 conv3 relu flatten fc sigmoid",
    "Basset": "conv1 relu bn1 pool3 conv2 relu bn2 pool4 conv3 relu bn3 pool4 flatten fc1 relu bn4 fc2 relu bn5 fc3",
    "FactorizedBasset": "conv11 bn11 relu conv12 bn12 relu conv13 bn13 relu conv14 bn14 relu conv15 bn15 relu pool3 "
    "conv21 bn21 relu conv22 bn22 relu conv23 bn23 relu pool4 conv3 bn3 relu pool4 "
    "flatten fc1 relu bn4 fc2 relu bn5 fc3",
    "BPNet": "iconv relu dconv1@2 relu dconv2@4 relu dconv3@8 relu fconv",
}


def main(job: SimpleNamespace) -> dict[str, Any]:
    import fastism
    import tensorflow

    if job.model not in LAYERS:
        raise NotImplementedError(f"{job.model} is not written in Keras here")
    tensorflow.config.threading.set_intra_op_parallelism_threads(job.cores)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    X = np.ascontiguousarray(load_sequences(job).transpose(0, 2, 1))
    model = keras_model(tensorflow, LAYERS[job.model].split(), load_weights(job), job.length)
    model(X[:1], training=False)
    memory = Memory("cpu")
    begin = time.perf_counter()
    fast = fastism.FastISM(model, test_correctness=False)
    precompute_seconds = time.perf_counter() - begin
    batch = tensorflow.constant(X)
    kept: list[np.ndarray] = []

    def score() -> None:
        kept[:] = [fast(batch, replace_with=character) for character in np.eye(4).tolist()]

    fast(batch, replace_with=[1.0, 0.0, 0.0, 0.0])  # warm up: a quarter of the work
    seconds = timings(score, job)
    peak = memory.peak()
    changes = np.stack([outputs[0] for outputs in kept]) - model(X[:1], training=False).numpy()[0]
    save_scores(job, np.sqrt((changes.astype(np.float64) ** 2).sum(-1)))
    return {
        "seconds": seconds,
        "precompute_seconds": precompute_seconds,
        "peak_bytes": peak,
        "versions": versions("fastism", "tensorflow"),
    }


def keras_model(tensorflow: Any, names: list[str], weights: dict[str, np.ndarray], length: int) -> Any:
    """The layers in Keras; torch's weights with their axes turned round."""
    layers = tensorflow.keras.layers
    entry = x = tensorflow.keras.Input(shape=(length, 4))
    loaded = []
    for entry_name in names if "flatten" in names else [*names, "flatten"]:
        name, _, dilation = entry_name.partition("@")
        weight = weights.get(f"{name}.weight")
        if name.startswith("pool"):
            layer = layers.MaxPool1D(int(name[4:]))
        elif name == "flatten":
            layer = layers.Flatten()
        elif weight is None:
            layer = layers.Activation(name)
        elif f"{name}.running_mean" in weights:
            layer = layers.BatchNormalization(epsilon=1e-5)
            loaded.append((layer, [weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean")]))
            loaded[-1][1].append(weights[f"{name}.running_var"])
        else:
            if weight.ndim == 3:
                rate = int(dilation or 1)
                layer = layers.Conv1D(weight.shape[0], weight.shape[2], padding="same", dilation_rate=rate)
            else:
                layer = layers.Dense(weight.shape[0])
            loaded.append((layer, [weight.T, weights[f"{name}.bias"]]))
        x = layer(x)
    for layer, values in loaded:
        layer.set_weights(values)
    return tensorflow.keras.Model(entry, x)


if __name__ == "__main__":
    run(main)
