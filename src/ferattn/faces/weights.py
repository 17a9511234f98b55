"""Detector weights from the model hub: fetched once, checked against a checksum, then used from the cache.

The real ``huggingface_hub`` client does the work, so its cache, its mirrors and its offline switch
(``HF_HUB_OFFLINE=1``) behave here as everywhere else.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ferattn.errors import WeightsMismatch

__all__ = ["YUNET_WEIGHTS", "HubFile", "checksum", "existing", "fetch", "verify"]


@dataclass(frozen=True)
class HubFile:
    """One file on the model hub, pinned to a revision and a checksum."""

    repo: str
    name: str
    revision: str
    sha256: str


YUNET_WEIGHTS = HubFile(
    repo="opencv/face_detection_yunet",
    name="face_detection_yunet_2023mar.onnx",
    revision="3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)


def fetch(file: HubFile, *, cache_dir: str | Path | None = None) -> Path:
    """Path of a hub file in the local cache, downloaded if it is not there yet. Not checked: see ``verify``.

    Args:
        file: What to fetch.
        cache_dir: The hub client's cache; None for its usual place.

    Raises:
        WeightsMismatch: If the file is not in the cache and cannot be downloaded.
    """
    # timm depends on the hub client, so it is always installed; its import takes a moment.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The cache first: a pinned revision never changes, so there is nothing to ask the network.
        return Path(
            hf_hub_download(file.repo, file.name, revision=file.revision, cache_dir=cache_dir, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        pass
    try:
        # One request without retries: without a network the download alone keeps trying for 23 s.
        get_hf_file_metadata(hf_hub_url(file.repo, file.name, revision=file.revision))
        return Path(hf_hub_download(file.repo, file.name, revision=file.revision, cache_dir=cache_dir))
    except Exception as error:
        # The client raises its own, its HTTP library's and the system's errors; which ones changed over time.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsMismatch(
            f"{file.name} is not in the hub cache and could not be fetched from {file.repo!r} ({reason}). "
            f"Give a local copy by path: weights='.../{file.name}'"
        ) from error


def verify(path: Path, file: HubFile) -> Path:
    """The same path, if the file there has the right checksum.

    Raises:
        WeightsMismatch: If it has not.
    """
    found = checksum(path)
    if found != file.sha256:
        raise WeightsMismatch(
            f"{path} is not {file.name}: its sha256 is {found}, expected {file.sha256}; "
            "delete the file to have it fetched again"
        )
    return path


def checksum(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def existing(weights: str | os.PathLike[str], detector: str) -> Path:
    """The path of weights given by the user.

    Raises:
        WeightsMismatch: If there is no such file.
    """
    path = Path(weights)
    if not path.is_file():
        raise WeightsMismatch(f"weights={os.fspath(weights)!r} for {detector}: there is no such file")
    return path
