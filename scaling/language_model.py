"""A model to use: a finished run of a sweep, or a Hugging Face folder, with its tokenizer and where it comes from."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaling import token_store
from scaling.checkpoint import decode_tree, restore_tree
from scaling.config import RunConfig, UserError
from scaling.corpus import load
from scaling.decoder import DecoderConfig, Parameters, decoder_config, from_transformer
from scaling.record import Folder, Resolved, read_resolved, read_result
from scaling.text_codec import TextCodec, make_codec


@dataclass(frozen=True)
class LanguageModel:
    """What decoding, evaluation and export need.

    Attributes
    ----------
    name : the run_id, or the name of the folder
    run, result : the run and what was recorded of it; None and empty for a Hugging Face folder
    """

    name: str
    config: DecoderConfig
    parameters: Parameters
    codec: TextCodec
    run: RunConfig | None = None
    result: dict[str, Any] = field(default_factory=dict)


def open_model(path: Path, run_id: str | None = None) -> LanguageModel:
    """The model of a results folder (`run_id`: None is the run of the lowest loss) or of a Hugging Face folder.

    Raises
    ------
    UserError
        One line: neither kind of folder, no such run, or a run without weights.
    """
    if Folder(path).resolved.is_file():
        resolved = read_resolved(path)
        return load_run(path, find_run(path, resolved, run_id), resolved)
    if (path / "config.json").is_file():
        from scaling.huggingface.reading import load_folder

        if run_id is not None:
            raise UserError(f"--run {run_id}: {path} is a Hugging Face folder and holds one model; leave --run out")
        return load_folder(path)
    what = "is neither a sweep's results folder (sweep.resolved.json) nor a Hugging Face one (config.json)"
    raise UserError(f"{path} {what if path.is_dir() else 'does not exist'}; `scaling run SWEEP.toml` makes a results folder")


def find_run(path: Path, resolved: Resolved, run_id: str | None) -> RunConfig:
    """The finished run of an id (a beginning that only one has will do); without an id, that of the lowest loss."""
    folder = Folder(path)
    if run_id is not None:
        exact = [run for run in resolved.runs if run.run_id == run_id]
        begun = exact or [run for run in resolved.runs if run.run_id.startswith(run_id)]
        if len(begun) != 1:
            what = "is the beginning of several runs" if begun else "is no run"
            raise UserError(f'--run {run_id} {what} of {path}; `scaling query {path} "SELECT run_id, loss FROM runs"` lists them')
        return begun[0]
    losses = {
        run.run_id: (result["loss"], run)
        for run in resolved.runs
        if (result := read_result(folder, run.run_id, files=False)) and result["status"] == "done"
    }
    if not losses:
        raise UserError(f"{path}: no trained run is here (tables without run folders?); `scaling run {path / 'sweep.toml'}` trains them")
    return min(losses.values(), key=lambda found: found[0])[1]


def load_run(path: Path, run: RunConfig, resolved: Resolved) -> LanguageModel:
    """A finished run with its weights.

    Raises
    ------
    UserError
        If it is not done, has no weights here, or its tokenizer cannot be had.
    """
    config = decoder_config(run.trunk.model)
    result = read_result(Folder(path), run.run_id, files=False)
    if result is None or result["status"] != "done":
        state = "is not trained here" if result is None else f"has {result['status']}: no weights were kept"
        raise UserError(f"--run {run.run_id} {state}; `scaling status {path}` says why, `scaling run {path / 'sweep.toml'}` trains it")
    weights = Folder(path).run(run.run_id) / "weights.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{weights} is missing (results committed without checkpoints?); `scaling run {path / 'sweep.toml'}` trains it again"
        )
    try:
        tensors, _ = decode_tree(weights.read_bytes())
    except ValueError as error:
        raise UserError(f"{weights}: damaged ({error}); `scaling run {path / 'sweep.toml'}` sets it aside and trains it again") from None
    codec = codec_of(run, resolved)
    return LanguageModel(run.run_id, config, decoder_parameters(run, config, tensors), codec, run, result)


def decoder_parameters(run: RunConfig, config: DecoderConfig, tensors: dict[str, np.ndarray]) -> Parameters:
    """Saved weights of a run as the parameters of its decoder."""
    from jax import eval_shape

    from scaling.architectures import architecture_of

    template = eval_shape(lambda: architecture_of(run.trunk.model).initial_parameters(run.trunk.model, 0))
    weights = restore_tree(tensors, template)
    return from_transformer(config, weights) if config.family == "transformer" else weights


def codec_of(run: RunConfig, resolved: Resolved) -> TextCodec:
    """The tokenizer of a run: bytes, the tokenizer.json of its prepared text, or its own file."""
    data = run.trunk.data
    return make_codec("bytes" if data.tokenizer == "bytes" else str(tokenizer_file(run, resolved)))


def tokenizer_file(run: RunConfig, resolved: Resolved) -> Path:
    """The tokenizer.json that a run's text was encoded with; the text is prepared again if the cache has lost it."""
    data = run.trunk.data
    path = token_store.place(data.corpus_hash) / "tokenizer.json"
    if not path.is_file():
        load(data.corpus, content_hash=data.corpus_hash, tokenizer=data.tokenizer, options=resolved.sweep.text)
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a folder that somebody else wrote.

    Raises
    ------
    UserError
        If it is not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); is this a model's folder?") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object; is this a model's folder?")
    return found
