"""`muco push`: upload an exported model to the hub."""

from __future__ import annotations

from pathlib import Path

from muco.core.errors import MucoError
from muco.model.folder import METADATA_FILE, read_metadata


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload a folder that `muco export` wrote, and return its address on the hub.

    The repository, `name` as owner/name, is made if it is missing. The login is that of `hf auth login`, or
    `HF_TOKEN`. Raise MucoError if the folder is no exported model, its card is not valid, or the hub refuses.
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    if not (folder / METADATA_FILE).is_file():
        raise MucoError(f"{folder}: no exported model here. `muco export RUN FOLDER` writes one")
    read_metadata(folder)
    try:
        card = ModelCard.load(folder / "README.md")
    except (OSError, ValueError) as error:
        raise MucoError(f"{folder / 'README.md'}: no valid model card: {error}") from error
    if not card.data.get("license"):
        raise MucoError(f"{folder / 'README.md'}: `license` is missing. Export with --license ID, or edit it")
    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by muco"))
    except Exception as error:
        known = (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError)
        # The package raises the errors of its HTTP client as they are, and the client has changed its name.
        if not isinstance(error, known) and not type(error).__module__.startswith("httpx"):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MucoError(f"{name}: the hub did not take the model: {first}") from error
