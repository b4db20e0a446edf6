"""Models on the Hugging Face Hub: fetched by name, pushed with a card that says what they are and measured.

A repository there is a folder as `VAE.save_pretrained` writes it, with a card, ``README.md``, and where it
was evaluated the measures, ``evaluation.json``. Folders here are never looked up there, and need no network.
The library's mixin is not a base class of ours: every import of a model would need ``huggingface_hub``.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path

from ..checkpoint import CONFIG, WEIGHTS, CheckpointError, save_model
from ..extras import MissingExtra, explained, install
from .card import MEASURES, Metrics, Saved, evaluation_of, model_card

CARD = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class HubError(CheckpointError):
    """The Hugging Face Hub was not reached, has no such model, or did not take one."""


def fetched(
    source: str | PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """The folder of a model: a path as it is, or what the Hub has under a name, in its local cache.

    Args:
        source: a path; or where none is there, "user/name".
        revision: branch, tag or commit on the Hub; None: its newest.
        token: of the Hub; None: the one of ``hf auth login``, if any.

    Returns:
        The path, which need not exist where it is no such name.

    Raises:
        HubError: the Hub cannot be reached, or has no such model; nothing of that name is here.
        ValueError: a revision of a path.
    """
    name, path = fspath(source), Path(source)
    if path.exists() or not _REPOSITORY.fullmatch(name):
        if revision is not None:
            raise ValueError(f"revision: expected None for a path, found {revision!r} for {name}")
        return path
    with _blamed(f"{name}: no such folder here, and not fetched from the Hugging Face Hub"):
        import huggingface_hub

        folder = huggingface_hub.HfApi(token=token).snapshot_download(
            name, revision=revision, allow_patterns=[WEIGHTS, CONFIG]
        )
    return Path(folder)


def push(
    model: Saved,
    repo_id: str,
    *,
    metrics: Metrics | None = None,
    dataset: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    message: str = "Add model",
    token: str | bool | None = None,
) -> str:
    """Uploads a model with its card; what `VAE.push_to_hub` does.

    Args:
        model: to upload.
        repo_id: "user/name"; made where it is not there.
        metrics: see `model_card`; uploaded too.
        dataset: see `model_card`.
        license: see `model_card`.
        private: of a repository made here; None: as the account has it.
        create_pr: propose the change instead of making it.
        message: of the commit.
        token: of the Hub; None: the one of ``hf auth login``.

    Returns:
        The address of the commit.

    Raises:
        ValueError: ``repo_id`` is no such name; and what `model_card` raises.
        HubError: the Hub was not reached, or refuses.
        MissingExtra: huggingface_hub is not installed.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"repo_id: expected 'user/name', found {repo_id!r}")
    card = model_card(model, repo_id=repo_id, metrics=metrics, dataset=dataset, license=license)
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, model.config, model.state_dict())
        card.save(Path(folder) / CARD)
        if metrics is not None:
            (Path(folder) / MEASURES).write_text(json.dumps(evaluation_of(metrics), indent=1) + "\n")
        with _blamed(f"{repo_id}: not pushed to the Hugging Face Hub"):
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, create_pr=create_pr
            )
    return str(commit.commit_url)


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Turns whatever the library raises into one sentence."""
    try:
        with explained():
            yield
    except MissingExtra:
        raise HubError(f"{what}: huggingface_hub is not installed: {install('hub')}") from None
    except Exception as error:  # of its HTTP client, of its own, of the file system
        first, *_ = [*str(error).strip().splitlines(), ""]
        raise HubError(f"{what} ({type(error).__name__}: {first})") from error
