"""The text of a segment of steps as the compiled program takes it: windows, or their places in text that lies on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import TrunkConfig
from scaling.corpus import Corpus
from scaling.evaluate import compile_evaluation
from scaling.mixture import training_starts, training_windows
from scaling.program import LOG_EVERY, Resident, compile_training
from scaling.tokenizer import token_dtype

_ON_DEVICE: dict[str, jax.Array] = {}


def is_resident(corpus: Corpus) -> bool:
    """Whether training text is kept on the device: on accelerators, while its places fit into 31 bits."""
    return jax.default_backend() != "cpu" and len(corpus.train) < 2**31


def resident_tokens(corpus: Corpus) -> jax.Array:
    """All training tokens, on the device."""
    if corpus.content_hash not in _ON_DEVICE:
        _ON_DEVICE.clear()  # one corpus at a time
        _ON_DEVICE[corpus.content_hash] = jnp.asarray(corpus.train)
    return _ON_DEVICE[corpus.content_hash]


def windows_of(corpus: Corpus, config: TrunkConfig, first: int, stop: int) -> np.ndarray:
    """Token windows of steps `first` to `stop`: (LOG_EVERY, batch, length + 1) unsigned, zero beyond `stop`."""
    data, length = config.data, config.model.sequence_length
    batch = data.batch_tokens // length
    out = np.zeros((LOG_EVERY, batch, length + 1), token_dtype(config.model.vocab_size))
    if stop > first:
        windows = training_windows(corpus, data, seed=data.seed_data, first=first * batch, count=(stop - first) * batch, length=length)
        out[: stop - first] = windows.reshape(stop - first, batch, length + 1)
    return out


def starts_of(corpus: Corpus, config: TrunkConfig, first: int, stop: int) -> np.ndarray:
    """Where the same windows begin: (LOG_EVERY, batch) int32, zero beyond `stop`."""
    data, length = config.data, config.model.sequence_length
    batch = data.batch_tokens // length
    out = np.zeros((LOG_EVERY, batch), np.int32)
    if stop > first:
        starts = training_starts(corpus, data, seed=data.seed_data, first=first * batch, count=(stop - first) * batch, length=length)
        out[: stop - first] = starts.reshape(stop - first, batch)
    return out


def text_of(corpus: Corpus, config: TrunkConfig, first: int, stop: int) -> np.ndarray | Resident:
    """The text of steps `first` to `stop`."""
    if is_resident(corpus):
        return Resident(resident_tokens(corpus), starts_of(corpus, config, first, stop))
    return windows_of(corpus, config, first, stop)


def compile_ahead(corpus: Corpus, config: TrunkConfig) -> None:
    """Compile what a trunk runs, or fetch it from the shared cache."""
    nothing = (config, 0, 0)
    compile_training(config, text_of(corpus, *nothing) if config.lanes == 1 else text_of_lanes(corpus, [nothing] * config.lanes))
    compile_evaluation(config.model, config.precision)


def text_of_lanes(corpus: Corpus, lanes: list[tuple[TrunkConfig, int, int]]) -> np.ndarray | Resident:
    """The text of lanes, each a trunk with the steps that it takes; a first axis for them."""
    if is_resident(corpus):
        return Resident(resident_tokens(corpus), np.stack([starts_of(corpus, *lane) for lane in lanes]))
    return np.stack([windows_of(corpus, *lane) for lane in lanes])
