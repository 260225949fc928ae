"""Entry points: compose with Hydra, validate once, call one function, and turn errors into exit codes.

    @entry("train")
    def main(config: TrainConfig) -> float | None: ...

Exit status: 0 done, 2 a mistake of the user (`error: …` on one line), 130 interrupted with Ctrl-C. Anything else
is a bug and keeps its traceback. A sweep goes on when a job fails (:mod:`llasa.sweep`) and exits 3, or 2 when all did.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from llasa.config import CONF_DIR, RAW_TEXT_KEYS, REPOSITORY, ROOTS
from llasa.errors import UserError
from llasa.explain import explain, fail, mistake_in_job, nearest
from llasa.sweep import Job, Sweep, current_job, finish_sweep

UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)

OPEN_DICTIONARIES = {"train": ("stores", "mixture.weights")}
"""Fields whose keys are the user's own: Hydra's check of names would reach into them."""

# Hydra makes the folder of a job before the job runs; a job that writes nothing needs none.
OmegaConf.register_new_resolver("run_folder", lambda plan, folder: "." if plan else folder, replace=True)

for _name, _schema in ROOTS.items():
    _node = OmegaConf.structured(_schema)
    for _key in OPEN_DICTIONARIES.get(_name, ()):
        OmegaConf.set_struct(OmegaConf.select(_node, _key), False)
    ConfigStore.instance().store(name=f"{_name}_schema", node=_node)


def entry(root: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Decorate a function of one typed config as the main program of ``conf/<root>.yaml``."""

    def decorate(function: Callable[[Any], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def task(node: DictConfig) -> Any:
            try:
                return function(typed_config(node))
            except (UserError, HydraException, OmegaConfBaseException) as error:
                mistake = error if isinstance(error, UserError) else explain(error, root)
                if current_job() is not None:
                    raise mistake from None  # for the sweep's record
                fail(mistake)  # here, or Hydra prints a line of its own

        program = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=root)(task)

        @functools.wraps(function)
        def main() -> None:
            # Hydra would print its own page-long reports and exit 1; with this it hands us the exception.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            # The jobs of a sweep may start in another folder, in new processes (submitit, Ray).
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
            try:
                sys.argv[1:] = quote_raw_values(sweep_first(sys.argv[1:]))
                refuse_unknown_flags(sys.argv[1:])
                failures = None
                try:
                    program()
                finally:
                    failures = finish_sweep()
                if failures is not None:
                    fail(*failures)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            except UserError as error:
                fail(error)
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain(error, root))
            except ValueError as error:
                if failures is not None and "No trials are completed" in str(error):  # Optuna, at the end of a study
                    fail(*failures)
                if not str(error).startswith("Config group override"):  # codec=null, lang=5
                    raise
                fail(UserError(str(error).rstrip("."), remedy="pass GROUP=OPTION, see --help"))
            except BrokenPipeError:
                if not {"--help", "-h", "--cfg", "-c", "--info", "-i"} & set(sys.argv):
                    raise
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `--help | head`: enough was read
            except OSError as error:
                if error.filename is None or error.errno not in UNUSABLE_PATH:
                    raise
                fail(UserError(f"cannot use {error.filename}: {error.strerror}", remedy="choose another folder"))
            except Exception as error:  # of a launcher, whose package may not be there; all else goes on
                if (mistake := mistake_in_job(error)) is None:
                    raise
                fail(mistake)

        return main

    return decorate


def typed_config(node: DictConfig) -> Any:
    """The composed node as its dataclass: interpolations resolved, `__post_init__` checks run.

    A node with an `output_dir` gets the folder that Hydra made for this job, which in a sweep is a subfolder
    for each job.
    """
    if "output_dir" in node and HydraConfig.initialized():
        if node.output_dir == "":
            raise UserError("output_dir is empty", remedy="name a folder, or leave it out")
        folder = Path(HydraConfig.get().runtime.output_dir)
        node.output_dir = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    if (job := current_job()) is not None:
        name_after_job(node, *job)
    try:
        config = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rpartition(" ")[2]
        raise UserError(f"{key} is required", remedy=f"pass {key}=…") from None
    refuse_added_keys(config)
    return config


def name_after_job(node: DictConfig, sweep: Sweep, job: Job) -> None:
    """W&B shows the runs of a sweep as a group, each by what it has of its own; an output gets the job's number, so
    that no job overwrites another's."""
    if OmegaConf.select(node, "logger") is not None:
        node.logger.group = node.logger.group or sweep.name
        node.logger.run_name = node.logger.run_name or ",".join(job.overrides) or str(job.number)
    if "output" in node and node.output and "output" not in sweep.keys:
        output = Path(node.output)
        node.output = str(output.with_name(f"{output.stem}-{job.number}{output.suffix}"))


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
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def sweep_first(arguments: Sequence[str]) -> list[str]:
    """`-m` may stand anywhere on the line; Hydra's parser takes no override after a flag in its middle."""
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    return flags[:1] + [argument for argument in arguments if argument not in flags]


def refuse_unknown_flags(arguments: Sequence[str]) -> None:
    """Hydra's own parser would print its usage over half a page."""

    def refuse(message: str) -> NoReturn:
        raise UserError(message, remedy="write KEY=VALUE without dashes; --help lists the keys")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # of this parser alone
    parser.parse_args(list(arguments))


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
