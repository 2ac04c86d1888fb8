"""The text of a segment of steps as the compiled program takes it: windows, or their places in text that lies on the device."""

from functools import lru_cache

import jax
import numpy as np
from jax.sharding import Mesh

from scaling.config import TrunkConfig
from scaling.corpus import Corpus
from scaling.evaluate import compile_evaluation
from scaling.mesh import place_everywhere, place_text
from scaling.mixture import training_starts, training_windows
from scaling.program import LOG_EVERY, Resident, compile_training
from scaling.tokenizer import token_dtype


def is_resident(corpus: Corpus) -> bool:
    """Whether training text is kept on the device: on accelerators, while its places fit into 31 bits."""
    return jax.default_backend() != "cpu" and len(corpus.train) < 2**31


@lru_cache(maxsize=1)  # one corpus at a time
def resident_tokens(corpus: Corpus, mesh: Mesh | None = None) -> jax.Array:
    """All training tokens, on every device."""
    return place_everywhere(mesh, corpus.train)


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


def text_of(corpus: Corpus, config: TrunkConfig, first: int, stop: int, mesh: Mesh | None = None) -> jax.Array | np.ndarray | Resident:
    """The text of steps `first` to `stop`."""
    if is_resident(corpus):
        return Resident(resident_tokens(corpus, mesh), place_text(mesh, starts_of(corpus, config, first, stop)))
    return place_text(mesh, windows_of(corpus, config, first, stop))


def text_of_lanes(corpus: Corpus, lanes: list[tuple[TrunkConfig, int, int]]) -> np.ndarray | Resident:
    """The text of lanes, each a trunk with the steps that it takes; a first axis for them."""
    if is_resident(corpus):
        return Resident(resident_tokens(corpus), np.stack([starts_of(corpus, *lane) for lane in lanes]))
    return np.stack([windows_of(corpus, *lane) for lane in lanes])


def compile_ahead(corpus: Corpus, config: TrunkConfig, mesh: Mesh | None = None) -> None:
    """Compile what a trunk runs, or fetch it from the shared cache."""
    idle = (config, 0, 0)
    compile_training(config, text_of(corpus, *idle, mesh) if config.lanes == 1 else text_of_lanes(corpus, [idle] * config.lanes), mesh)
    compile_evaluation(config.model, config.precision, mesh)
