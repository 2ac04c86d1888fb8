"""`scaling status RESULTS --run ID --provenance`: from a number back to its config, text and code."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import msgspec

from scaling.config import RunConfig, UserError
from scaling.language_model import find_run
from scaling.record import Folder, Resolved, read_resolved, read_result


def provenance(root: Path, run_id: str | None) -> dict[str, Any]:
    """What a run's numbers follow from, with what can be checked here checked.

    Raises
    ------
    UserError
        No such run, or one that has not ended.
    """
    resolved = read_resolved(root)
    run = find_run(root, resolved, run_id)
    folder = Folder(root).run(run.run_id)
    result = read_result(Folder(root), run.run_id, files=False)
    if result is None:
        committed = _committed(root, run, resolved)
        if committed is None:
            raise UserError(f"{run.run_id} has not ended; `scaling status {root}` says why")
        return committed
    environment = json.loads((folder / "environment.json").read_bytes())
    recorded = json.loads((folder / "config.json").read_bytes())
    forecast = recorded.pop("forecast", None)
    files = {name: _state(folder / name, digest) for name, digest in result["files"].items()}
    return {
        **_identity(run, resolved),
        "result": {key: result.get(key) for key in ("status", "loss", "loss_se", "bits_per_byte", "finished_at", "attempt")},
        "checks": {
            "the run_id is the hash of the recorded config": msgspec.convert(recorded, RunConfig).run_id == run.run_id,
            "files are as they were published": all(state == "intact" for state in files.values()),
            "the text of this hash is in the cache": _text_is_here(run),
        },
        "files": files,
        "code": {
            "code_version": environment["code_version"],
            "recipe_version": run.trunk.recipe_version,
            "packages": environment["packages"],
        },
        "machine": {key: environment[key] for key in ("numerics_id", "host", "cpu", "python", "platform", "xla_flags")},
        "forecast": forecast,
        "config": msgspec.to_builtins(run),
    }


def _identity(run: RunConfig, resolved: Resolved) -> dict[str, Any]:
    data, facts = run.trunk.data, resolved.facts_of(run.trunk.data.corpus_hash)
    text = {"corpus": data.corpus, "content_hash": data.corpus_hash, "tokenizer": data.tokenizer}
    return {
        "run_id": run.run_id,
        "trunk_id": run.trunk_id,
        "sweep": resolved.sweep.name,
        "text": {**text, **{key: facts.get(key, "") for key in ("version", "licence")}},
    }


def _committed(root: Path, run: RunConfig, resolved: Resolved) -> dict[str, Any] | None:
    """The same from committed tables, where run folders are not kept."""
    import pandas as pd

    if not (root / "runs.csv").is_file() or not (root / "provenance.json").is_file():
        return None
    row = pd.read_csv(root / "runs.csv").query("run_id == @run.run_id")
    if row.empty or row["status"].iloc[0] != "done":
        return None
    found, facts = row.iloc[0], json.loads((root / "provenance.json").read_bytes())
    return {
        **_identity(run, resolved),
        "result": {key: _plain(found[key]) for key in ("status", "loss", "loss_se", "bits_per_byte", "finished_at", "attempts")},
        "checks": {"the text of this hash is in the cache": _text_is_here(run)},
        "code": {"code_version": (facts["environment"] or {}).get("code_version"), "recipe_version": run.trunk.recipe_version},
        "machine": {"numerics_id": found["numerics_id"], "host": found["host"]},
        "config": msgspec.to_builtins(run),
        "note": "from the committed tables; the run folder with weights and checksums is not here",
    }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _state(path: Path, digest: str) -> str:
    if not path.is_file():
        return "missing"
    return "intact" if hashlib.sha256(path.read_bytes()).hexdigest() == digest else "changed since it was published"


def _text_is_here(run: RunConfig) -> bool:
    from scaling import token_store

    return token_store.read(run.trunk.data.corpus_hash) is not None


def describe(found: dict[str, Any]) -> str:
    """The same for people."""
    text, result, code = found["text"], found["result"], found["code"]
    lines = [
        f"run      {found['run_id']} of sweep {found['sweep']}, trunk {found['trunk_id']}",
        f"result   {result['status']}: loss {result['loss']} (standard error {result['loss_se']}), finished {result['finished_at']}",
        f"text     {text['corpus']} ({text['version']}; {text['licence']}), tokenizer {text['tokenizer']}, hash {text['content_hash']}",
        f"code     {code['code_version']}, recipe version {code['recipe_version']}",
        f"machine  {found['machine']['numerics_id']} on {found['machine']['host']}; here: {platform.node()}",
        *(f"check    {what}: {'yes' if holds else 'NO'}" for what, holds in found["checks"].items()),
        *(f"file     {name}: {state}" for name, state in found.get("files", {}).items()),
    ]
    lines += [f"note     {found['note']}"] if "note" in found else []
    return "\n".join([*lines, "config   --json prints it in full; `scaling run` with the sweep file trains the same run_id again"])
