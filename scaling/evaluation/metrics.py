"""Scores of generated text against references: BLEU and chrF (sacrebleu), ROUGE (rouge-score), exact match, F1, distinct-n, repetition.

Every score is 0 to 1 but BLEU and chrF, 0 to 100 as they are published. A `Score` has the standard error over the items: of the mean, or
for the corpus scores BLEU and chrF from sacrebleu's bootstrap.
"""

import importlib.util
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling.config import UserError


@dataclass(frozen=True)
class Score:
    """A metric over some items."""

    value: float
    std_error: float
    n: int


@dataclass(frozen=True)
class Item:
    """One generated text (`tokens` are those that the model wrote) and what it is compared with; the best reference counts."""

    text: str
    references: tuple[str, ...]
    tokens: tuple[int, ...] = ()


def mean_score(values: Sequence[float]) -> Score:
    """Mean and its standard error; NaN error for one item.

    >>> mean_score([0.0, 1.0]).std_error
    0.5
    """
    found = np.asarray(values, np.float64)
    error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else float("nan")
    return Score(float(found.mean()), error, len(found))


# ---------------------------------------------------------------- corpus scores of sacrebleu

BOOTSTRAPS = 200


def _sacrebleu(name: str, items: Sequence[Item]) -> Score:
    from sacrebleu import metrics  # pyright: ignore[reportMissingImports]

    most = max(len(item.references) for item in items)
    references = [[item.references[index] if index < len(item.references) else None for item in items] for index in range(most)]
    metric = getattr(metrics, name)()
    score = metric.corpus_score([item.text for item in items], references, n_bootstrap=BOOTSTRAPS if len(items) > 1 else 1)
    half_width = float(getattr(score, "_ci", -1.0))
    return Score(float(score.score), half_width / 1.96 if half_width >= 0 and len(items) > 1 else float("nan"), len(items))


LIBRARIES = dict.fromkeys(("bleu", "chrf"), "sacrebleu") | dict.fromkeys(("rouge1", "rouge2", "rougeL"), "rouge_score")


def need_libraries(metrics: Iterable[str]) -> None:
    """Refuse metrics whose package is missing, before any work is done.

    Raises
    ------
    UserError
        One line: the metric, the package, how to install it.
    """
    for name in metrics:
        if name in LIBRARIES and importlib.util.find_spec(LIBRARIES[name]) is None:
            raise UserError(
                f"{name} needs the package {LIBRARIES[name]}: pip install 'scaling-harness[evaluate]', or leave it out of --metrics"
            )


# ---------------------------------------------------------------- means over items


def _rouge(kind: str, items: Sequence[Item]) -> Score:
    from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingImports]

    scorer = RougeScorer([kind], use_stemmer=False)
    return mean_score([max(scorer.score(reference, item.text)[kind].fmeasure for reference in item.references) for item in items])


def normalised_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (SQuAD's official script; Rajpurkar et al. 2016).

    >>> normalised_answer("The  cat's hat!")
    'cats hat'
    """
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(text: str, reference: str) -> float:
    """1 if both are the same after `normalised_answer`."""
    return float(normalised_answer(text) == normalised_answer(reference))


def token_f1(text: str, reference: str) -> float:
    """F1 of the words that both have, after `normalised_answer`; two empty answers agree.

    >>> round(token_f1("the cat sat", "a cat sat down"), 3)
    0.8
    """
    found, wanted = normalised_answer(text).split(), normalised_answer(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def words(text: str) -> list[str]:
    """Words and single other signs, lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def distinct(sequence: Sequence[Any], n: int) -> float:
    """Share of n-grams that are different ones (Li et al. 2016); 1 where there are none.

    >>> distinct("a b a b".split(), 2)
    0.6666666666666666
    """
    grams = [tuple(sequence[at : at + n]) for at in range(len(sequence) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _best(function: Callable[[str, str], float], items: Sequence[Item]) -> Score:
    return mean_score([max(function(item.text, reference) for reference in item.references) for item in items])


METRICS: dict[str, Callable[[Sequence[Item]], Score]] = {
    "bleu": lambda items: _sacrebleu("BLEU", items),
    "chrf": lambda items: _sacrebleu("CHRF", items),
    "rouge1": lambda items: _rouge("rouge1", items),
    "rouge2": lambda items: _rouge("rouge2", items),
    "rougeL": lambda items: _rouge("rougeL", items),
    "exact_match": lambda items: _best(exact_match, items),
    "f1": lambda items: _best(token_f1, items),
    "distinct_1": lambda items: mean_score([distinct(words(item.text), 1) for item in items]),
    "distinct_2": lambda items: mean_score([distinct(words(item.text), 2) for item in items]),
    "repetition_4": lambda items: mean_score([1 - distinct(item.tokens, 4) for item in items]),
}
"""`repetition_4`: share of 4-grams of the model's tokens that came before in the same text (seq-rep-4, Welleck et al. 2020)."""

TASK_METRICS = {
    "continuation": ("bleu", "chrf", "rouge1", "rougeL", "distinct_1", "distinct_2", "repetition_4"),
    "summarisation": ("rouge1", "rouge2", "rougeL", "repetition_4"),
    "translation": ("bleu", "chrf"),
    "question_answering": ("exact_match", "f1"),
    "dialogue": ("chrf", "rougeL", "distinct_1", "distinct_2", "repetition_4"),
}
