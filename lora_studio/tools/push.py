"""A finished file to the Hugging Face hub, private unless asked otherwise, with its card and images.

Never what tells of the images it was made from or of the machine: no recipe, manifest, or caption.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import StudioError, reason_of
from lora_studio.metadata import sidecars

TOKEN = "HF_TOKEN"
_REFUSALS = {
    401: f"it does not know the token in {TOKEN}; make another one in its settings",
    403: f"the token in {TOKEN} has no right to write there; make one that has, or use your own name",
}


@dataclass(frozen=True)
class Upload:
    """A file of the repository that is to be."""

    name: str  # its path there
    content: Path | bytes

    @property
    def num_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def uploads_of(target: Path) -> list[Upload]:
    """What belongs to a run's folder or to one file; a card that somebody has changed is taken as it is.

    Of an evaluation its figures, in the card, and its sheet: evaluation.json and the page hold captions.
    Raises StudioError if there is no finished run or file.
    """
    is_run = target.is_dir()
    run, files = (target, sidecars.finished_files(target)) if is_run else (target.parent, [target])
    described = [sidecars.describe_file(path) for path in files]
    beside = [one.with_suffix(end) for one in files for end in (".png", ".json")]
    title = described[0].metadata.get("modelspec.title", "")
    images = sidecars.shown_images(run) if is_run else sidecars.image_beside(target, title)
    evaluated, sheet = sidecars.with_evaluation(described, target)
    card: Path | bytes = run / sidecars.CARD
    ours = sidecars.model_card(described, images).encode()  # as the run's end wrote it, before an evaluation
    if not is_run or not (run / sidecars.CARD).is_file() or (run / sidecars.CARD).read_bytes() == ours:
        card = sidecars.model_card(evaluated, images, sheet=sheet).encode()
    uploads = [Upload(path.name, path) for path in files] + [Upload(sidecars.CARD, card)]
    uploads += [Upload(path.name, path) for path in beside if path.is_file()]
    uploads += [Upload(one.path, run / one.path) for one in images]
    uploads += [Upload(sheet, run / sheet)] if sheet else []
    return list({one.name: one for one in uploads}.values())


def token_from_environment() -> str:
    """The user's token. Raises StudioError if there is none: it is asked for nowhere else."""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    raise StudioError(
        f"the environment variable {TOKEN} is empty; make a token with the right to write in the hub's "
        f"settings, and set {TOKEN} to it for this command."
    )


def push(repo: str, uploads: Sequence[Upload], *, public: bool, token: str) -> str:
    """Make the repository if it is not there, and one commit with all of it; the address.

    `HF_ENDPOINT` in the environment names another hub. Raises StudioError if the hub refuses or cannot be
    reached, or the repository is there and public, and `public` is not asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with _one_sentence(repo, token):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
        made = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(made.repo_id).private:
            raise StudioError(
                f"{made.repo_id} is there and public, so everybody would see the file; add --public if they "
                "may, or name another repository."
            )
        operations = [
            CommitOperationAdd(one.name, one.content if isinstance(one.content, bytes) else str(one.content))
            for one in uploads
        ]
        api.create_commit(made.repo_id, operations, commit_message=f"Upload {uploads[0].name}")
        return str(made)


@contextmanager
def _one_sentence(repo: str, token: str) -> Iterator[None]:
    """Within it what the hub's library raises becomes one sentence, in which the token never stands."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except StudioError:
        raise
    except HFValidationError:
        raise StudioError(
            f"{repo!r} is no name of a repository; write it as user/name, in letters, digits, - _ and dots."
        ) from None
    except OfflineModeIsEnabled:
        why = "HF_HUB_OFFLINE is set, so nothing is sent; take it out of the environment."
        raise StudioError(why) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        why = _REFUSALS.get(status) or reason_of(error).replace(token, "***")
        raise StudioError(f"the hub refuses {repo}: {why}.") from None
    except Exception as error:  # of which HTTP library it is depends on the version of the hub's own one
        cause: BaseException = error
        while cause.__cause__ is not None:  # "Error while uploading" alone says nothing
            cause = cause.__cause__
        reason = reason_of(Exception(cause)).replace(token, "***")
        raise StudioError(
            f"the hub cannot be reached, or the upload broke off ({reason}); the same command tries again."
        ) from None
