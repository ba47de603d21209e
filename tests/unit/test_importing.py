"""What is between the command and the first step, and need not be: collections, imports, compilers, silence."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

from rlkit.importing import importing


class Knot:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.enable()
    gc.unfreeze()


def said_by(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_is_imported_is_not_looked_through_again() -> None:
    with importing():
        assert not gc.isenabled()
        lasting = Knot()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(each is lasting for each in gc.get_objects())


def test_what_was_garbage_before_is_not_kept() -> None:
    gc.disable()
    left = weakref.ref(Knot())
    gc.enable()
    with importing():
        assert left() is None


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_collector_that_the_user_has_switched_off_stays_off() -> None:
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def test_at_the_end_of_the_process_all_of_it_is_looked_through() -> None:
    frozen = said_by(
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from rlkit.importing import importing\n"
        "with importing():\n"
        "    pass\n"
        "print(gc.get_freeze_count() > 0)"
    )
    assert frozen == ["True", "0"]


def test_a_run_says_what_it_loads_before_it_does() -> None:
    first, then = said_by(
        "import gc, sys\n"
        "from rlkit import config\n"
        "from rlkit.assembly import run\n"
        "def resolve(given):\n"
        "    print(gc.isenabled(), {'torch', 'transformers', 'deepspeed'} & set(sys.modules))\n"
        "    sys.exit()\n"
        "config.resolve_with_algorithm = resolve\n"
        "run.train('embedded')"
    )
    assert first == "vimpo-s-seed0: loading PyTorch, transformers and DeepSpeed"
    assert then == "False set()"


@pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed's operators are for GPUs")
def test_joining_the_process_group_starts_no_compiler() -> None:
    (started,) = said_by(
        "import sys\n"
        "started = []\n"
        "sys.addaudithook(lambda event, given: event == 'subprocess.Popen' and started.append(given[0]))\n"
        "from rlkit.engine import distributed\n"
        "distributed.init()\n"
        "print(started)"
    )
    assert started == "[]"
