"""All ranks write into one folder: each writes its part of a checkpoint. Whether they do is proved at the start."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from rlkit.engine import distributed
from rlkit.errors import ConfigError
from rlkit.wording import ranges

PATIENCE_S = 60.0
"""A network's file system may show what another machine has written as late as that."""
POLL_S = 0.2


def one_folder(folder: Path, patience_s: float = PATIENCE_S) -> Path:
    """The run's folder, which rank 0's is: a rank that was started elsewhere takes that for its own. Collective.

    Rank 0 writes a file of a random name there, and all must see it. ConfigError, naming the machines that do not, and
    for a folder that rank 0 cannot write to.
    """
    if distributed.world_size() == 1:
        return folder
    # Not resolved: what a link leads to may differ from machine to machine.
    own = folder.absolute()
    signed = distributed.gather_objects(_sign(own) if distributed.main_rank() else (own, "", ""))
    whole, sign, trouble = signed[0]
    if trouble:
        raise ConfigError(trouble)
    seen = distributed.gather_objects(_sees(whole / sign, patience_s))
    if distributed.main_rank():
        (whole / sign).unlink()
    if blind := [rank for rank, sees in enumerate(seen) if not sees]:
        if distributed.main_rank():
            with contextlib.suppress(OSError):
                whole.rmdir()  # where it was made for this
        raise ConfigError(
            f"the ranks do not share the run's folder: what rank 0, on {distributed.hosts()[0]}, writes to {whole} is "
            f"not seen by {_named(blind, distributed.hosts())}. Every rank writes its part of a checkpoint there, so "
            "give --out a folder that all machines see, on a file system that they share"
        )
    return folder if own == whole else whole


def _sign(folder: Path) -> tuple[Path, str, str]:
    """Written by rank 0: the folder, the name of the file, and what went wrong, if anything did."""
    name = f".seen-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        return folder, name, f"cannot make the run's folder {folder}: {error}. Choose another with --out"
    return folder, name, ""


def _sees(sign: Path, patience_s: float) -> bool:
    limit = time.monotonic() + patience_s
    while True:
        # Its folder is read, since a file that was once looked for in vain may be remembered as missing.
        with contextlib.suppress(OSError):
            if sign.name in os.listdir(sign.parent):
                return True
        if time.monotonic() > limit:
            return False
        time.sleep(POLL_S)


def _named(blind: Sequence[int], hosts: Sequence[str]) -> str:
    """node3 (ranks 8 to 15) and node4 (rank 16)."""
    by_host: dict[str, list[int]] = {}
    for rank in blind:
        by_host.setdefault(hosts[rank], []).append(rank)
    return " and ".join(f"{host} (rank{'s'[: len(own) > 1]} {ranges(own)})" for host, own in by_host.items())
