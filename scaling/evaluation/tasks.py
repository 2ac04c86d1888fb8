"""Tasks: prompts with references, made from held-out text or read from a JSONL file, and what a model makes of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from scaling.config import UserError
from scaling.decoding.strategies import Limits, Strategy, generate
from scaling.evaluation.held_out import OVERALL, Windows
from scaling.evaluation.metrics import METRICS, TASK_METRICS, Item, Score
from scaling.language_model import LanguageModel
from scaling.text_codec import UNFINISHED, TextCodec

BATCH = 64
"""Prompts that are continued side by side."""


class Exercise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a JSONL file. `stop`: where an answer ends; `tokens`: at most so many new ones."""

    prompt: str
    references: list[str]
    task: str = "continuation"
    domain: str = ""
    language: str = ""
    stop: list[str] = []
    tokens: int = 64


@dataclass(frozen=True)
class TaskScore:
    """A metric of a model on a task, over all items or those of a domain or language."""

    task: str
    domain: str
    language: str
    metric: str
    score: Score


def read_exercises(path: Path) -> list[Exercise]:
    """Exercises of a JSONL file.

    Raises
    ------
    UserError
        The file and line, and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tasks {path}: not readable as UTF-8 text ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = msgspec.json.decode(line, type=Exercise)
        except msgspec.MsgspecError as error:
            example = '{"task": "question_answering", "prompt": "Q: ...", "references": ["..."]}'
            raise UserError(f"{path}:{number}: {error}; a line is like {example}") from None
        if one.task not in TASK_METRICS:
            raise UserError(f"{path}:{number}: task = {one.task!r}; allowed: {', '.join(TASK_METRICS)}")
        if not one.references or one.tokens < 1:
            raise UserError(f"{path}:{number}: references is empty or tokens is below 1; give at least one of each")
        found.append(one)
    if not found:
        raise UserError(f"{path}: no exercises in it; one JSON object a line (docs/evaluation.md)")
    return found


def continuations(windows: Windows, codec: TextCodec, *, domain: str, most: int) -> list[Exercise]:
    """Held-out windows cut in the middle: the first half is the prompt, the second the reference (evenly spread, at most so many)."""
    chosen = windows.tokens[np.linspace(0, len(windows.tokens) - 1, min(most, len(windows.tokens))).round().astype(int)]
    half = windows.tokens.shape[1] // 2
    made = []
    for row in chosen:
        prompt, reference = codec.decode(row[:half]).strip(UNFINISHED), codec.decode(row[half:]).strip(UNFINISHED)
        made.append(Exercise(prompt=prompt, references=[reference], domain="" if domain == OVERALL else domain, tokens=half))
    return made


def answers(model: LanguageModel, exercises: Sequence[Exercise], strategy: Strategy, *, seed: int) -> list[Item]:
    """What the model writes; prompts longer than its context keep their end.

    Exercises with the same stops and length go together in batches, and a batch of fewer prompts is filled up: few programs are compiled.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, one in enumerate(exercises):
        groups[(tuple(one.stop), one.tokens)].append(index)
    items: dict[int, Item] = {}
    for (stop, tokens), members in groups.items():
        for at in range(0, len(members), BATCH):
            batch = members[at : at + BATCH]
            prompts = [_fitting(model, exercises[index].prompt) for index in batch]
            limits = Limits(tokens=tokens, stop=stop, seed=seed)
            found = generate(model, prompts + [""] * (BATCH - len(batch)), strategy, limits=limits)
            for index, one in zip(batch, found, strict=False):
                items[index] = Item(one.text, tuple(exercises[index].references), one.tokens)
    return [items[index] for index in range(len(exercises))]


def _fitting(model: LanguageModel, prompt: str) -> str:
    tokens = model.codec.encode(prompt)
    room = model.config.context
    return prompt if len(tokens) <= room else model.codec.decode(tokens[-(room - 4) :]).strip(UNFINISHED)


def scores(exercises: Sequence[Exercise], items: Sequence[Item], metrics: Sequence[str] | None = None) -> Iterator[TaskScore]:
    """Every metric of every task, over all of its items, and of each domain and language that has at least two."""
    for task in dict.fromkeys(one.task for one in exercises):
        mine = [(one, item) for one, item in zip(exercises, items, strict=True) if one.task == task]
        parts: dict[tuple[str, str], list[Item]] = {(OVERALL, OVERALL): [item for _, item in mine]}
        for field, at in (("domain", 0), ("language", 1)):
            for name in dict.fromkeys(getattr(one, field) for one, _ in mine):
                group = [item for one, item in mine if getattr(one, field) == name]
                if name and len(group) >= 2:
                    parts[(name, OVERALL) if at == 0 else (OVERALL, name)] = group
        for (domain, language), group in parts.items():
            for metric in TASK_METRICS[task]:
                if metrics is None or metric in metrics:
                    yield TaskScore(task, domain, language, metric, METRICS[metric](group))
