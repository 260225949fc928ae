"""Build the leaves of a config: nodes with a `_target_` (codec, source, optimizer, engine)."""

from __future__ import annotations

import re
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from llasa.errors import UserError


def build(node: dict[str, Any]) -> Any:
    """`hydra.utils.instantiate`, without its wrapping of exceptions.

    Raises:
        UserError: the target's own, or it cannot be imported, or its signature refuses a key of the node.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        target = node["_target_"]
        if str(error).startswith("Error locating target"):
            while cause is not None and cause.__cause__ is not None:
                cause = cause.__cause__
            remedy = "check the _target_, or install its package"
            raise UserError(f"cannot import {target}: {cause}", remedy=remedy) from error
        if isinstance(cause, TypeError) and cause.__traceback__ and cause.__traceback__.tb_next is None:
            message = re.sub(r"^\S*__init__\(\) ", "", str(cause))
            raise UserError(f"{target}: {message}", remedy="check the names in its config") from error
        if cause is None:
            raise
        raise cause from None
