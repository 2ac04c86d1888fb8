"""Weights of a model's shape drawn by NumPy: nothing to compile, and no part of a model stays at its (partly zero) start."""

import jax
import jax.numpy as jnp
import numpy as np

from scaling.architectures import architecture_of
from scaling.decoder import decoder_config, from_transformer
from scaling.language_model import LanguageModel


def random_weights(config, seed=0):
    """Matrices of variance 1 / inputs, gains around one, biases around zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1:
            centre = 0 if path[-1].key.endswith("_bias") else 1
            return jnp.asarray(centre + 0.2 * noise, jnp.float32)
        return jnp.asarray(noise / leaf.shape[-1] ** 0.5, jnp.float32)

    shapes = jax.eval_shape(lambda: architecture_of(config).initial_parameters(config, 0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_model(config, codec, seed=0, *, sharper=4.0):
    """A language model of such weights, its head `sharper` so that its choices are clear, and the weights."""
    weights = random_weights(config, seed)
    weights["head"] = sharper * weights["head"]
    made = decoder_config(config)
    parameters = from_transformer(made, weights) if config.kind == "transformer" else weights
    return LanguageModel(config.kind, made, parameters, codec), weights
