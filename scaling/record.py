"""Run folders: paths, atomic writes, checked readers, and the tables `runs.csv` and `curves.parquet` rebuilt from them.

Truth is the folders; every table can be rebuilt. A run's folder appears in one rename, complete, so its presence means that the run ended;
what cannot be read back with its checksum is set aside under another name and made again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from scaling.config import RunConfig, Sweep, UserError

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


@dataclass(frozen=True)
class Folder:
    """Paths inside one sweep's results folder."""

    root: Path

    @property
    def resolved(self) -> Path:
        """The sweep with every default written out, and its list of runs."""
        return self.root / "sweep.resolved.json"

    @property
    def runs(self) -> Path:
        """Finished runs, one folder each."""
        return self.root / "runs"

    @property
    def forecasts(self) -> Path:
        """Registered forecasts."""
        return self.root / "forecasts"

    def run(self, run_id: str) -> Path:
        """Folder of a finished run."""
        return self.runs / run_id

    def trunk(self, trunk_id: str) -> Path:
        """Folder of a trunk: claim, attempts, saved states."""
        return self.root / "trunks" / trunk_id

    def failure(self, trunk_id: str) -> Path:
        """Why a trunk could not be trained; removed by `--retry failed`."""
        return self.trunk(trunk_id) / "failure.json"


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What `sweep.resolved.json` holds."""

    sweep: Sweep
    corpus_hash: str
    corpus_facts: dict[str, Any]
    runs: list[RunConfig]
    texts: dict[str, dict[str, Any]] = {}

    def facts_of(self, corpus_hash: str) -> dict[str, Any]:
        """Facts of one of the sweep's texts: counts, licence, version; `train_tokens`, `domain_tokens`, `entropy` where known."""
        return self.texts.get(corpus_hash, self.corpus_facts)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What of a text's facts is computed with; all the others are only shown."""

    train_tokens: Count = 0
    train_bytes: Count = 0
    domain_tokens: dict[str, Count] = {}
    bytes_per_token: Annotated[float, msgspec.Meta(gt=0)] | None = None
    entropy: Annotated[float, msgspec.Meta(ge=0)] | None = None


# ---------------------------------------------------------------- writing


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file through a temporary name, flushed to disk, so that readers see the old or the new content and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # pids repeat between machines that share a folder
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def put_in_place(made: Path, path: Path) -> None:
    """Rename a finished file to its name.

    Raises
    ------
    UserError
        A folder has that name.
    """
    try:
        os.replace(made, path)
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder where a file is to be written; move it away") from None


def write_json(path: Path, value: Any) -> None:
    """Atomic, readable JSON with sorted keys."""
    write_atomic(path, _readable(value))


def _readable(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_lock(root: Path, name: str) -> Iterator[None]:
    """Exclusive advisory lock on a results folder (`claims` or `tables`), held for moments; the kernel frees it when a process dies."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def set_aside(path: Path) -> Path:
    """Rename something damaged to the first free `NAME.damaged-K`, for a person to look at; returns the new path."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    os.replace(path, target)
    return target


def publish_run(staged: Path, target: Path, result: dict[str, Any]) -> None:
    """Complete a staged run folder with its checksums and rename it into place."""
    result = {**result, "files": {path.name: _sha256(path.read_bytes()) for path in sorted(staged.iterdir())}}
    (staged / "result.json").write_bytes(_readable({**result, "checksum": _checksum(result)}))
    for path in staged.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    _sync_folder(staged)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        set_aside(target)
    os.replace(staged, target)
    _sync_folder(target.parent)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _checksum(result: dict[str, Any]) -> str:
    return _sha256(msgspec.json.encode(result, order="sorted"))


# ---------------------------------------------------------------- reading


def read_result(folder: Folder, run_id: str, *, files: bool = True) -> dict[str, Any] | None:
    """The result of a run, or None if it has not ended.

    A folder whose result does not match its checksums (`files`: also those of its files) is set aside and counts as not ended.
    """
    path = folder.run(run_id)
    if not path.exists():
        return None
    try:
        result = json.loads((path / "result.json").read_bytes())
        intact = _checksum({key: value for key, value in result.items() if key != "checksum"}) == result["checksum"]
        intact = intact and result["run_id"] == run_id
        if intact and files:
            intact = all(_sha256((path / name).read_bytes()) == digest for name, digest in result["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact, result = False, None
    if intact:
        return result
    with contextlib.suppress(FileNotFoundError):
        set_aside(path)
    return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Points of a `metrics.jsonl`, up to the first line that is not whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    with contextlib.suppress(ValueError):
        return _LINES.decode_lines(data)
    points = []
    for line in data.splitlines():  # cut off, or with a NaN, which JSON proper does not know
        try:
            point = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(point, dict):
            break
        points.append(point)
    return points


_LINES = msgspec.json.Decoder(dict[str, Any])


def encode_metrics(points: list[dict[str, Any]]) -> bytes:
    """Points as JSON lines."""
    return b"".join(json.dumps(point).encode() + b"\n" for point in points)


def read_resolved(root: Path) -> Resolved:
    """The resolved sweep of a results folder.

    Raises
    ------
    UserError
        If `root` is not the results folder of a sweep.
    """
    path = Folder(root).resolved
    if not path.is_file():
        raise UserError(f"{root} is not a sweep's results folder (no sweep.resolved.json); `scaling run SWEEP.toml` makes one")
    try:
        resolved = msgspec.json.decode(path.read_bytes(), type=Resolved)
        msgspec.convert([resolved.corpus_facts, *resolved.texts.values()], list[Facts])
        return resolved
    except ValueError as error:  # msgspec.MsgspecError is one, and so is text that is no UTF-8
        raise UserError(f"{path}: damaged or from another version ({error}); `scaling run SWEEP.toml` writes it anew") from None


def read_failure(folder: Folder, trunk_id: str) -> str | None:
    """Reason why a trunk failed, or None."""
    path = folder.failure(trunk_id)
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_bytes())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "failure record is damaged"


def path_step(path: Path) -> int:
    """Step in the name of a saved state, -1 when there is none."""
    text = path.name.removesuffix(".safetensors").rpartition("-")[2]
    return int(text) if text.isdigit() else -1


def disk_usage(path: Path) -> int:
    """Bytes of all files under `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.exists() else 0


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
