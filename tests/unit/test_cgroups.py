"""A group bounds what its processes hold together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit import cgroups

HOLDS = """
import os, sys, time
children = []
for _ in range(4):
    if (child := os.fork()) == 0:
        held = bytearray(b"x" * (40 << 20))
        time.sleep(600)
    children.append(child)
# Whoever is killed for memory ends this one too.
pid, status = os.wait()
print(status)
for child in children:
    try:
        os.kill(child, 9)
    except ProcessLookupError:
        pass
"""

needs_groups = pytest.mark.skipif(not cgroups.can_bound_memory(), reason="no control group can be made here")


@needs_groups
def test_processes_that_each_keep_to_a_limit_do_not_pass_it_together() -> None:
    group = cgroups.memory_group(100 << 20)
    assert group is not None
    done = subprocess.run(
        [sys.executable, "-c", HOLDS], preexec_fn=group.join, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 or done.stdout.strip() == "9"
    group.close()
    assert not group.folder.exists()
    alone = cgroups.memory_group(100 << 20)
    assert alone is not None
    program = "bytearray(b'x' * (40 << 20))"
    subprocess.run([sys.executable, "-c", program], preexec_fn=alone.join, check=True, timeout=60)
    alone.close()


@needs_groups
def test_a_group_of_a_process_that_was_killed_is_removed_by_the_next() -> None:
    place = cgroups._place()
    assert place is not None
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = place / f"rlkit-{ended.pid}-0"
    left.mkdir()
    group = cgroups.memory_group(1 << 30)
    assert group is not None
    group.close()
    assert not left.exists()


def test_where_none_can_be_made_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "_candidates", lambda: iter([tmp_path, tmp_path / "gone"]))
    cgroups._place.cache_clear()
    try:
        assert not cgroups.can_bound_memory()
        assert cgroups.memory_group(1 << 30) is None
        assert os.listdir(tmp_path) == []
    finally:
        cgroups._place.cache_clear()
