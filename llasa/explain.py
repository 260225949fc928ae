"""A mistake in one line with the remedy: what Hydra and OmegaConf refuse, with the nearest valid names."""

from __future__ import annotations

import difflib
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llasa.config import CONF_DIR
from llasa.errors import UserError


def fail(error: UserError, status: int = 2) -> NoReturn:
    """Print the mistake as `error: …` on one line and exit."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)  # the first process most likely says the same, and its launcher then ends this one
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


def explain(error: Exception, root: str) -> UserError:
    """One line for what Hydra or OmegaConf refused, with the nearest valid names."""
    message = str(error)
    cause = error.__cause__
    group = re.search(r"Could not find '([^']+)'.*?Available options in '([^']+)':\s*(.*)", message, re.S)
    if group:
        wanted, name = group[1], group[2]
        options = re.findall(r"^\s*(\S+)$", group[3].partition("Config search path")[0], re.M)
        option = wanted.removeprefix(f"{name}/")
        return UserError(f"there is no {name} named {option!r}", remedy=nearest(option, options))
    key = re.search(r"Could not override '([^']+)'", message)
    in_struct = re.search(
        r"[Kk]ey '([^']+)' (?:is not in struct|not in '\w+')\s+full_key: (\S+)", f"{message}\n{cause}"
    )
    unknown = in_struct[2] if in_struct else key[1] if key and "No match in the defaults list" in message else None
    if unknown is not None:
        return UserError(f"there is no key {unknown!r} in the {root} config", remedy=nearest(unknown, valid_keys(root)))
    grammar = re.match(r"(?:Error parsing override|Ambiguous value for argument) .*", message)
    if grammar:
        return UserError(grammar[0], remedy="write KEY=VALUE, a list as KEY=[A,B]; -m KEY=A,B runs a sweep")
    detail = str(cause) if isinstance(cause, OmegaConfBaseException) else message
    first = detail.strip().splitlines()[0]
    full_key = re.search(r"full_key: (\S+)", f"{detail}\n{message}")
    where = f"{full_key[1]}: " if full_key and full_key[1] not in first else f"{key[1]}: " if key else ""
    return UserError(where + first)


def nearest(wanted: str, names: Sequence[str]) -> str:
    names = sorted(set(names))
    leaf = wanted.rpartition(".")[2]
    same_leaf = [name for name in names if name.rpartition(".")[2] == leaf]  # lr for optimizer.lr
    begun = [name for name in names if len(wanted) > 2 and name.startswith(wanted)]  # language for lang
    close = same_leaf[:3] or begun[:3] or difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    top = [name for name in names if "." not in name] or names
    return f"valid names: {', '.join(top)}"


def valid_keys(root: str) -> list[str]:
    """Every key of the default config, dotted, and every group that the root names."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        node = compose(root)
    keys: list[str] = []

    def walk(prefix: str, node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            keys.append(f"{prefix}{key}")
            walk(f"{prefix}{key}.", value)

    walk("", OmegaConf.to_container(node, resolve=False))
    defaults = OmegaConf.load(CONF_DIR / f"{root}.yaml").defaults
    groups = [key for entry in defaults if not isinstance(entry, str) for key in entry if " " not in key]
    return [key for key in keys if not key.endswith(("_target_", "_partial_"))] + groups


def mistake_in_job(error: Exception) -> UserError | None:
    """What a launcher says of its jobs' processes, where that is no bug of ours: a job of submitit printed `error: …`
    in its own process before it ended, joblib lost one, or there is no SLURM here. None for anything else."""
    if str(error).startswith('Could not detect "srun"'):
        return UserError("hydra/launcher=submitit_slurm: there is no srun here", remedy="run it on a SLURM login node")
    if type(error).__name__ == "TerminatedWorkerError":
        return UserError(
            "the process of a job was killed, which ends a sweep of hydra/launcher=joblib",
            remedy="most often its memory was used up: lower hydra.launcher.n_jobs; the same output_dir= with "
            "resume=auto runs what is missing",
        )
    if not type(error).__module__.startswith("submitit."):
        return None
    told = re.search(r"^error: (.+)$", str(error), re.MULTILINE)
    return UserError(f"in a job of the sweep: {told[1]}") if told else None
