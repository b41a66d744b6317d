"""Upload a run to the Hugging Face hub: the model, its card, the log; not the checkpoints."""

from pathlib import Path
from typing import Any

from zoobj.config import ZOConfig
from zoobj.errors import UserError

_LEFT_OUT = [
    "checkpoint-*",
    "snapshot-*",
    ".*",
    "*.tmp",
    "pending.jsonl",
    "outcomes.jsonl",
    "scoring.json",
    "runs/*",
]


def check() -> None:
    """Whoever wants to upload is logged in; told before the run, not after it.

    Raises:
        UserError: there is no valid token, or no network.
    """
    try:
        _api().whoami()
    except Exception as error:  # huggingface_hub's own, and those of the HTTP client of the day
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"--push_to_hub: {reason}: log in with 'hf auth login' or set HF_TOKEN"
        ) from error


def push(folder: Path, args: ZOConfig) -> str:
    """Upload a finished run; returns its address.

    Raises:
        UserError: it could not be uploaded; the run is safe on disk.
    """
    name = args.hub_model_id or folder.resolve().name
    try:
        api = _api()
        repo = api.create_repo(name, private=args.hub_private_repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            ignore_patterns=_LEFT_OUT,
            commit_message="Tuned by zoobj",
        )
    except (Exception, KeyboardInterrupt) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"--push_to_hub: {reason}; the run is complete in {folder}: upload it with "
            f"'hf upload {name} {folder}', or go on with --resume_from_checkpoint {folder}"
        ) from error
    return str(repo)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()
