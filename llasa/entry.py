"""Entry points: compose with Hydra, validate once, call one function, and turn errors into exit codes.

    @entry("train")
    def main(config: TrainConfig) -> float | None: ...

Exit status: 0 done, 2 a mistake of the user (`error: …` on one line), 130 interrupted with Ctrl-C. Anything else
is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from llasa.config import RAW_TEXT_KEYS, ROOTS
from llasa.errors import UserError

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

for _name, _schema in ROOTS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_schema)


def entry(root: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Decorate a function of one typed config as the main program of ``conf/<root>.yaml``."""

    def decorate(function: Callable[[Any], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def task(node: DictConfig) -> Any:
            try:
                return function(typed_config(node))
            except UserError as error:
                fail(error)
            except InstantiationException as error:
                fail(explain_instantiation(error))
            except (HydraException, OmegaConfBaseException) as error:  # here, or Hydra prints a line of its own
                fail(explain(error, root))

        program = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=root)(task)

        @functools.wraps(function)
        def main() -> None:
            # Hydra would print its own page-long reports and exit 1; with this it hands us the exception.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            sys.argv[1:] = quote_raw_values(sys.argv[1:])
            try:
                program()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            except UserError as error:
                fail(error)
            except InstantiationException:  # a bug in what was built: see explain_instantiation
                raise
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain(error, root))
            except ValueError as error:
                if not str(error).startswith("Config group override"):  # codec=null, lang=5
                    raise
                fail(UserError(str(error).rstrip("."), remedy="pass GROUP=OPTION, see --help"))
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                fail(UserError(f"cannot write {error.filename}: {error.strerror}", remedy="choose another folder"))

        return main

    return decorate


def fail(error: UserError) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def typed_config(node: DictConfig) -> Any:
    """The composed node as its dataclass: interpolations resolved, `__post_init__` checks run.

    A node with an `output_dir` gets the folder that Hydra made for this job, which in a sweep is a subfolder
    for each job.
    """
    if "output_dir" in node and HydraConfig.initialized():
        node.output_dir = os.path.relpath(HydraConfig.get().runtime.output_dir)
    try:
        config = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rpartition(" ")[2]
        raise UserError(f"{key} is required", remedy=f"pass {key}=…") from None
    refuse_added_keys(config)
    return config


def refuse_added_keys(config: Any, prefix: str = "") -> None:
    """`+trainer.max_step=3` passes Hydra's check of names; nothing would ever read it."""
    if not is_dataclass(config):
        return
    names = [field.name for field in fields(config)]
    for name, value in vars(config).items():
        if name not in names:
            raise UserError(
                f"there is no key {prefix + name!r}", remedy=nearest(prefix + name, [prefix + known for known in names])
            )
        refuse_added_keys(value, f"{prefix}{name}.")


def compose_config(root: str, overrides: Sequence[str] = ()) -> Any:
    """The typed config of a root, for programs and tests that do not run from the command line."""
    from hydra import compose, initialize_config_dir

    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
            return typed_config(compose(root, overrides=quote_raw_values(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, root) from None


def group_config(group: str, option: str) -> dict[str, Any]:
    """The plain content of ``conf/<group>/<option>.yaml``, for options that a file names (a checkpoint's codec)."""
    path = CONF_DIR / group / f"{option}.yaml"
    options = sorted(p.stem for p in path.parent.glob("*.yaml"))
    if option not in options:
        raise UserError(f"there is no {group} named {option!r}", remedy=f"known: {', '.join(options)}")
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def quote_raw_values(arguments: Sequence[str]) -> list[str]:
    """Quote free text and paths so that Hydra takes them literally: `text=Ciao, come stai?` is one string."""
    sweep = "-m" in arguments or "--multirun" in arguments
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        already = QUOTED.fullmatch(value)
        swept = sweep and "," in value
        interpolated = "${" in value and key not in ("text", "voice_text")
        if equals and key in RAW_TEXT_KEYS and value not in ("", "null") and not (already or swept or interpolated):
            # OmegaConf reads \${ as a plain ${ and halves the backslashes before it.
            value = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)
            # In Hydra's quotes a backslash is special only before a quote or at the end.
            value = "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
        quoted.append(f"{key}{equals}{value}")
    return quoted


def explain_instantiation(error: InstantiationException) -> UserError:
    """What a person can fix about a `_target_` that could not be built; a bug in it is raised again."""
    cause = error.__cause__
    if isinstance(cause, UserError):
        return cause
    target = re.search(r"target '([^']+)'", str(error))
    if target and str(error).startswith("Error locating target"):
        while cause is not None and cause.__cause__ is not None:
            cause = cause.__cause__
        return UserError(f"cannot import {target[1]}: {cause}", remedy="check the _target_, or install its package")
    if target and isinstance(cause, TypeError) and cause.__traceback__ and cause.__traceback__.tb_next is None:
        return UserError(f"{target[1]}: {cause}", remedy="check the names in its config")  # refused by its signature
    raise error


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
    if in_struct or (key and "No match in the defaults list" in message):
        wanted = in_struct[2] if in_struct else key[1]
        return UserError(f"there is no key {wanted!r} in the {root} config", remedy=nearest(wanted, valid_keys(root)))
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
    close = same_leaf[:3] or difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    top = [name for name in names if "." not in name] or names
    return f"valid names: {', '.join(top)}"


def valid_keys(root: str) -> list[str]:
    """Every key and group of the default config, dotted."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        node = compose(root)
    keys: list[str] = []

    def walk(prefix: str, node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            keys.append(f"{prefix}{key}")
            walk(f"{prefix}{key}.", value)

    walk("", OmegaConf.to_container(node, resolve=False))
    return [key for key in keys if not key.endswith(("_target_", "_partial_"))] + [
        path.name for path in CONF_DIR.iterdir() if path.is_dir()
    ]
