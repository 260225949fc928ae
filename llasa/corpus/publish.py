"""A finished store on the Hugging Face hub: the files as they are, and a card that says what they are.

    README.md                    the card; its header tells `datasets` which shards make which split
    plan.json manifest.json rejects.jsonl SPLIT/NNNNN.parquet      the store's own layout

So a downloaded repository is a store (`hf download NAME --repo-type dataset --local-dir DIR`), and
`datasets.load_dataset(NAME)` reads it as well. Shards without rows are sent, for the store counts them, but are no
part of a split there: `datasets` fails on them.

Publishing again sends what has changed only. A store of at most ``FILES_PER_COMMIT`` files appears in one commit, whole
or not at all; a larger one in several, manifest and card at the end: until then it reads as unfinished.

The hub's rules for cards: https://huggingface.co/docs/hub/datasets-cards, for splits
https://huggingface.co/docs/hub/datasets-manual-configuration.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llasa.corpus.store import MANIFEST, PLAN, REJECTS, TokenStore, in_threads, read_shard_record
from llasa.errors import UserError, first_line
from llasa.paths import is_local

CARD = "README.md"
FILES_PER_COMMIT = 500
SHARD_FILE = re.compile(r"[^/]+/\d{5}\.parquet")
LOG_IN = "run `hf auth login` with a token that may write, or set HF_TOKEN"
AGAIN = "run it again: what is there is not sent twice"


def publish_store(root: str | Path, repo_id: str, *, private: bool = True, license: str | None = None) -> str:
    """Publish the store at ``root`` as the data set ``repo_id`` (OWNER/NAME, or NAME for your own) and return its URL.

    ``private`` counts where the repository is new. ``license`` is an identifier of the hub's list (``cc-by-4.0``).

    Raises:
        UserError: the store is not finished, the hub refuses or cannot be reached, or the repository holds something
            else than a token store.
    """
    store = TokenStore(root)
    if store.manifest["rows"] == 0:
        raise UserError(f"the store at {root} has no rows", remedy="see rejects.jsonl there for the reasons")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    with hub_errors(repo_id):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        repo_id = url.repo_id
        there = set(api.list_repo_files(repo_id, repo_type="dataset"))
    if PLAN not in there and there - {CARD, ".gitattributes"}:
        raise UserError(
            f"{url} holds something else than a token store",
            remedy="choose another name with push_to_hub=, or delete that one",
        )
    files = files_to_publish(store, repo_id, license)
    # Those of a longer store that was published before: the pattern of a split would find them.
    stale = sorted(file for file in there - files.keys() if SHARD_FILE.fullmatch(file))
    waiting = iter(files.items())
    sent = 0
    while batch := list(islice(waiting, FILES_PER_COMMIT)):
        sent += len(batch)
        operations = [
            CommitOperationAdd(
                path, content if isinstance(content, bytes) or is_local(content) else content.read_bytes()
            )
            for path, content in batch
        ]
        last = sent == len(files)
        with hub_errors(repo_id):
            api.create_commit(
                repo_id,
                [*operations, *(CommitOperationDelete(file) for file in stale if last)],
                commit_message=f"Token store: {len(files)} files" if last else f"{sent} of {len(files)} files",
                repo_type="dataset",
            )
    if license is None:
        print("its card says `license: unknown`: state the licence of the recordings with license=…")
    print(f"published: {url}")
    return str(url)


def check_access(repo_id: str) -> None:
    """Before hours of work: a name the hub takes, and a token that it knows.

    Raises:
        UserError: there is neither.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with hub_errors(repo_id):
        validate_repo_id(repo_id)
        HfApi().whoami()


def files_to_publish(store: TokenStore, repo_id: str, license: str | None = None) -> dict[str, Path | bytes]:
    """Path in the repository → file of the store, or content; the card and the manifest last."""
    names = [PLAN, *map(in_repository, store.files()), REJECTS, MANIFEST]
    return {name: store.root / name for name in names} | {CARD: card(store, repo_id, license).encode()}


@contextlib.contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what the hub's client raises into a :class:`UserError`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        why = error.server_message or first_line(error)
        if status == 401:
            raise UserError(f"the hub does not know you ({why})", remedy=LOG_IN) from error
        if status == 403:
            raise UserError(f"you may not write to {repo_id} ({why})", remedy=LOG_IN) from error
        raise UserError(f"the hub answers {status} for {repo_id}: {why}", remedy=AGAIN) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError("you are not logged in to the hub", remedy=LOG_IN) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError("the hub is switched off", remedy="unset HF_HUB_OFFLINE") from error
    except errors.HFValidationError as error:
        raise UserError(
            f"push_to_hub={repo_id!r} is not valid: {first_line(error)}", remedy="use OWNER/NAME"
        ) from error
    except ValueError as error:
        why = " ".join(str(error).split())
        if "README.md" not in why:  # of whose header the licence is what people give
            raise UserError(f"the hub refuses {repo_id}: {why}", remedy=AGAIN) from error
        remedy = "use an identifier of https://huggingface.co/docs/hub/repositories-licenses as the licence"
        raise UserError(f"the hub refuses the card of {repo_id}: {why}", remedy=remedy) from error
    except RuntimeError as error:  # from the threads, or the Rust, that send the large files
        why = first_line(error.__cause__ or error)
        raise UserError(f"the upload broke off: {why}", remedy=f"check the network and {AGAIN}") from error
    except (errors.HTTPError, OSError) as error:  # the base of the client's network errors, whichever library it uses
        raise UserError(
            f"cannot reach the hub: {first_line(error)}", remedy=f"check the network and {AGAIN}"
        ) from error


def split_files(store: TokenStore, split: str) -> str | list[str]:
    """What the card's header names as the files of a split: a pattern, or a list where some shards are empty."""
    files = store.files(split)
    records = in_threads(read_shard_record, files)
    filled = [in_repository(file) for file, record in zip(files, records, strict=True) if record.rows]
    return f"{split}/*.parquet" if len(filled) == len(files) else filled


def in_repository(shard: Path) -> str:
    return "/".join(shard.parts[-2:])


def card(store: TokenStore, repo_id: str, license: str | None = None) -> str:
    """The data set card: a header for the hub and for `datasets`, then text for people."""
    import yaml

    manifest, codec = store.manifest, store.codec
    filled = {split: facts for split, facts in manifest["splits"].items() if facts["rows"]}
    header: dict[str, Any] = {
        "license": license or "unknown",
        "language": [code for code in manifest["languages"] if code],
        "task_categories": ["text-to-speech"],
        "tags": ["llasa", "speech-codes", codec.name],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": split_files(store, split)} for split in filled],
            }
        ],
    }
    splits = [[split, f"{f['rows']:,}", hours(f["seconds"]), f"{f['codes']:,}"] for split, f in filled.items()]
    dropped = [[reason, f"{count:,}"] for reason, count in manifest["dropped"].items()]
    weights = f' | {{"checkpoint": "{codec.checkpoint}"}}' if codec.checkpoint else ""
    return f"""\
---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---

# {repo_id.rpartition("/")[2]}

Speech as codes of the codec {codec.name}, with its text: {manifest["rows"]:,} rows, {hours(manifest["seconds"])}, \
{manifest["codes"]:,} codes; language: {", ".join(manifest["languages"])}. A token store of llasa, made from the \
corpus `{manifest["source"].get("name", "unknown")}`.
{"" if license else NO_LICENSE}
{table(["split", "rows", "length", "codes"], splits)}

## Codec

| | |
| --- | --- |
| name | {codec.name} |
| checkpoint | {codec.checkpoint or "none needed"} |
| fingerprint | `{codec.fingerprint}` |
| sample rate | {codec.sample_rate:,} Hz |
| codes a second | {codec.tokens_per_second:g} |
| codebook | {codec.codebook_size:,} codes |

## Columns

| name | what |
| --- | --- |
| `id` | of the row in its corpus |
| `text` | as it is spoken: numbers and abbreviations in words; what a model reads |
| `text_given` | as the corpus has it |
| `speaker`, `language` | empty where the corpus does not say |
| `seconds` | of sound |
| `num_codes` | how many codes |
| `row` | number of the row in its split of the corpus |
| `codes_hash` | of the codes, to find duplicates |
| `codes` | flat, in the order in which a model says them |

## Rows that were dropped

{table(["reason", "rows"], dropped) if dropped else "None."}

`rejects.jsonl` names each of them.

## Train with it

```
hf download {repo_id} --repo-type dataset --local-dir store
python train.py store=store
```

## Listen to it

```python
from llasa.audio import write_wav
from llasa.build import build
from llasa.corpus.store import TokenStore
from llasa.entry import group_config

store = TokenStore("store")
codec = build(group_config("codec", "{codec.name}"){weights})
row = store.rows("{next(iter(filled))}")[0]
write_wav("row.wav", codec.decode([row["codes"]])[0], codec.spec.sample_rate)
print(row["text"])
```

Without llasa: `datasets.load_dataset("{repo_id}")`.
"""


NO_LICENSE = """
> **The licence is not stated.** Codes can be turned back into the recordings, so what holds for the recordings holds \
for them. Whoever publishes this should state it: `license:` above.
"""


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])
