"""Perplexity, bits per byte and accuracy on held-out text, with standard errors clustered by document, for any model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from scaling.config import RunConfig, Split, UserError
from scaling.corpus import Corpus
from scaling.decoder import token_losses
from scaling.evaluate import EVALUATION_BATCH, clustered_standard_error
from scaling.evaluation.metrics import Score
from scaling.language_model import LanguageModel
from scaling.text_codec import TextCodec
from scaling.tokenizer import Encoder

OVERALL = "all"


@dataclass(frozen=True)
class Windows:
    """Windows (n, length + 1) of a split as tokens of the corpus, the document of each, the bytes of text of a predicted token."""

    tokens: np.ndarray
    documents: np.ndarray
    bytes_per_token: float


def windows_by_domain(corpus: Corpus, run: RunConfig) -> Iterator[tuple[str, Windows]]:
    """The windows that every run of the sweep was evaluated on: all of them, then each domain's."""
    data, length = run.trunk.data, run.trunk.model.sequence_length
    split: Split = data.evaluation_split
    counts = {None: data.evaluation_windows, **corpus.domain_windows(data.evaluation_windows, length=length, split=split)}
    for domain, count in counts.items():
        tokens, documents = corpus.evaluation_windows(count, length=length, split=split, domain=domain)
        size = corpus.bytes_per_token(count, length=length, split=split, domain=domain)
        yield domain or OVERALL, Windows(tokens, documents, size)


def held_out_scores(model: LanguageModel, windows: Windows) -> dict[str, Score]:
    """Loss (nats per token of the sweep's tokenizer), perplexity, bits per byte, and accuracy of the next token of a run of this sweep."""
    losses, right = _batched(model, windows.tokens)
    loss, loss_se = float(losses.mean()), clustered_standard_error(losses.mean(1), windows.documents)
    hits, n = right.mean(1), losses.size
    per_byte = 1 / math.log(2) / windows.bytes_per_token
    return {
        "loss": Score(loss, loss_se, n),
        "perplexity": Score(math.exp(loss), math.exp(loss) * loss_se, n),
        "bits_per_byte": Score(loss * per_byte, loss_se * per_byte, n),
        "accuracy": Score(float(hits.mean()), clustered_standard_error(hits, windows.documents), n),
    }


def foreign_scores(model: LanguageModel, windows: Windows, codec: TextCodec) -> dict[str, Score]:
    """The same for a model with a tokenizer of its own: each window's text is encoded anew, the first token is context, the rest scored.

    `loss` is in nats per token of the sweep: the model's nats per byte times the bytes a token of the sweep stands for; with bytes as
    tokens of both it is what `held_out_scores` gives. Perplexity is per token of the model. Errors are of ratios, clustered by document.
    """
    if model.codec.library is None:
        raise UserError(f"{model.name}: a Hugging Face folder without a tokenizer.json cannot read this text")
    encoder = Encoder(model.codec.name, model.codec.library, model.codec.end, model.config.vocab_size)
    texts = [codec.decode(row).encode() for row in windows.tokens]
    rows = [(tokens.astype(np.int64), widths) for tokens, widths in encoder.encode(texts)]
    longest = max(len(tokens) for tokens, _ in rows)
    if longest > model.config.context + 1:
        raise UserError(f"{model.name}: a window of the text is {longest} tokens, the model's context {model.config.context}")
    padded = np.zeros((len(rows), longest), np.int64)
    for row, (tokens, _) in enumerate(rows):
        padded[row, : len(tokens)] = tokens
    losses, right = _batched(model, padded)
    scored = np.arange(1, longest)[None] < np.array([len(tokens) for tokens, _ in rows])[:, None]
    sizes = np.array([widths[1:].sum() for _, widths in rows], np.float64)
    nats, counts = (losses * scored).sum(1), scored.sum(1).astype(np.float64)
    per_byte, per_token = _ratio(nats, sizes, windows.documents), _ratio(nats, counts, windows.documents)
    scale, bits = windows.bytes_per_token, 1 / math.log(2)
    return {
        "loss": Score(per_byte.value * scale, per_byte.std_error * scale, per_byte.n),
        "perplexity": Score(math.exp(per_token.value), math.exp(per_token.value) * per_token.std_error, int(counts.sum())),
        "bits_per_byte": Score(per_byte.value * bits, per_byte.std_error * bits, per_byte.n),
        "accuracy": _ratio((right * scored).sum(1), counts, windows.documents),
    }


def _ratio(numerators: np.ndarray, denominators: np.ndarray, clusters: np.ndarray) -> Score:
    """A ratio of sums; its error is that of the residuals, clustered."""
    value = float(numerators.sum() / denominators.sum())
    residuals = (numerators - value * denominators) / denominators.mean()
    return Score(value, clustered_standard_error(residuals, clusters), int(denominators.sum()))


def _batched(model: LanguageModel, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and hits of every predicted token, float64 and bool, batch by batch, so that one program serves any number of windows."""
    count = len(windows)
    padded = np.zeros((-(-count // EVALUATION_BATCH) * EVALUATION_BATCH, windows.shape[1]), np.int32)
    padded[:count] = windows
    parts = [
        token_losses(model.config, model.parameters, jnp.asarray(padded[at : at + EVALUATION_BATCH]))
        for at in range(0, len(padded), EVALUATION_BATCH)
    ]
    losses, right = (np.concatenate([np.asarray(part[index]) for part in parts])[:count] for index in (0, 1))
    return losses.astype(np.float64), right
