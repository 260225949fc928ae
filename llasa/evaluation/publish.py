"""A checkpoint on the Hugging Face hub: the folder as it is, with its card.

    CHECKPOINT/* and CHECKPOINT/samples/* ─one commit─► OWNER/NAME

One commit: the model appears whole or not at all, and weights of an earlier one that this one lacks go with it. A dry
run says what would be sent and asks nobody.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llasa.config import EvaluateConfig
from llasa.corpus.publish import check_access, hub_errors
from llasa.errors import UserError
from llasa.evaluation.card import CARD, gather, model_card, write_card
from llasa.evaluation.licenses import license_of_card, suggestion, warnings
from llasa.model.checkpoint import CARD as CHECKPOINT_CARD

OURS = (".safetensors", ".wav")
"""What a later upload may delete: weights and samples that the folder no longer has."""


def check_hand_over(config: EvaluateConfig) -> None:
    """Before hours of work: whether cards can be written, and the checkpoint be published, if that is asked for.

    Raises:
        UserError: a checkpoint is no folder of this project, or the hub does not know us.
    """
    if config.card or config.push_to_hub is not None:
        for checkpoint in config.every_checkpoint:
            gather(Path(checkpoint))
    if config.push_to_hub is not None and not config.push.dry_run:
        check_access(config.push_to_hub)


def hand_over(config: EvaluateConfig, report: dict[str, Any]) -> None:
    """Write the card of each checkpoint of an evaluation, and publish the checkpoint, as far as it is asked for.

    Raises:
        UserError: see :func:`write_card` and :func:`publish_checkpoint`.
    """
    if not (config.card or config.push_to_hub is not None):
        return
    for checkpoint in config.every_checkpoint:
        card = write_card(Path(checkpoint), report, Path(config.output), license=config.license)
        print(f"model card: {card}")
    if config.push_to_hub is not None:
        publish_checkpoint(
            Path(config.every_checkpoint[0]),
            config.push_to_hub,
            private=config.push.private,
            dry_run=config.push.dry_run,
        )


def publish_checkpoint(folder: Path, repo: str, *, private: bool = True, dry_run: bool = False) -> str:
    """Publish a checkpoint folder as the model ``repo`` (OWNER/NAME, or NAME for your own) and return its URL.

    Args:
        private: counts where the repository is new.
        dry_run: list the files with their sizes and the warnings of the card, and send nothing.

    Raises:
        UserError: the folder is no checkpoint, the hub refuses or cannot be reached, or the repository holds
            something else.
    """
    files = files_to_publish(folder)
    describe(folder, files)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id

    api = HfApi()
    if dry_run:
        with hub_errors(repo):
            validate_repo_id(repo)
        print(f"dry run: nothing was sent to {repo}")
        return f"{api.endpoint}/{repo}"
    if not sys.stderr.isatty():
        disable_progress_bars()
    with hub_errors(repo):
        url = api.create_repo(repo, private=private, exist_ok=True)
        repo = url.repo_id
        there = set(api.list_repo_files(repo))
    if CHECKPOINT_CARD not in there and there - {CARD, ".gitattributes"}:
        raise UserError(
            f"{url} holds something else than a checkpoint of llasa",
            remedy="choose another name with push_to_hub=, or delete that one",
        )
    stale = sorted(file for file in there - files.keys() if file.endswith(OURS))
    with hub_errors(repo):
        api.create_commit(
            repo,
            [CommitOperationAdd(path, content) for path, content in files.items()]
            + [CommitOperationDelete(file) for file in stale],
            commit_message=f"Checkpoint: {len(files)} files",
        )
    print(f"published: {url}")
    return str(url)


def files_to_publish(folder: Path) -> dict[str, Path | bytes]:
    """Path in the repository → file of the checkpoint, or content: a card is made where there is none.

    Raises:
        UserError: it is no checkpoint, or has no weights.
    """
    facts = gather(folder)
    found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    files: dict[str, Path | bytes] = {file.relative_to(folder).as_posix(): file for file in found}
    files = {name: file for name, file in files.items() if not any(p.startswith(".") for p in name.split("/"))}
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{folder} has no weights (*.safetensors)", remedy="let train.py finish")
    return {CARD: model_card(facts).encode()} | files


def describe(folder: Path, files: dict[str, Path | bytes]) -> None:
    """Print the files with their sizes, the licence and what the card warns of."""
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        print(f"{in_bytes(size):>10}  {name}")
    print(f"{in_bytes(sum(sizes.values())):>10}  in {len(files)} files")
    parts = gather(folder).parts
    license = license_of_card(folder / CARD) or suggestion(parts)
    print(f"licence: {license}")
    for warning in warnings(parts, license):
        print(f"warning: {warning}")


def in_bytes(size: int) -> str:
    """`1.2 MB`."""
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
