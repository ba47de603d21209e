"""What a signal asks of a run, when it is too late for the step in hand, and what passes signals on."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlkit.errors import EXIT_CODES, DroppedError
from rlkit.loop.interrupts import Interrupt

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_exit_codes_is_the_code_s() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert {int(code): said for code, said in rows} == EXIT_CODES


@contextmanager
def listening(interrupt: Interrupt) -> Iterator[Interrupt]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with interrupt.listening():
        yield interrupt
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_a_cluster_sends_means_the_same_each_time(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(Interrupt()) as interrupt:
        assert not interrupt.by
        for each in (number, number, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(each)
        assert interrupt.by == number
        assert not interrupt.late
    assert capsys.readouterr().out.count(f"told to end ({signal.Signals(number).name}): ending after this step") == 1


def test_a_second_interrupt_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(Interrupt()) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert interrupt.by == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_nohup_has_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(Interrupt()) as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt.by
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_signals_are_left_alone() -> None:
    def listen() -> None:
        with listening(Interrupt()):
            handlers.append(signal.getsignal(signal.SIGTERM))

    handlers: list[object] = []
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_when_it_is_late_what_can_be_dropped_is(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(Interrupt(grace_s=0.2)) as interrupt:
        with interrupt.droppable():
            signal.raise_signal(signal.SIGTERM)
            assert not interrupt.late
        for _ in range(2):  # also what is begun when it is late
            with pytest.raises(DroppedError), interrupt.droppable():
                threading.Event().wait(20)
        assert interrupt.late
        time.sleep(0.01)  # outside, nothing is
    assert "or without it where it takes longer: 0.2 s are left" in capsys.readouterr().out


def test_what_swallows_it_meets_it_again() -> None:
    with listening(Interrupt(grace_s=0.1)) as interrupt:
        met = 0
        with interrupt.droppable():
            signal.raise_signal(signal.SIGTERM)
            while met < 2:
                try:
                    time.sleep(20)
                except DroppedError:
                    met += 1
            with pytest.raises(DroppedError):
                time.sleep(20)


def test_half_of_the_time_is_kept_for_saving_and_more_where_saving_takes_more() -> None:
    for save_s, left in ((0.0, 50.0), (20.0, 50.0), (40.0, 20.0), (60.0, -20.0)):
        with listening(Interrupt(grace_s=100.0, save_s=save_s)) as interrupt:
            signal.raise_signal(signal.SIGTERM)
            assert interrupt._drop_at - time.monotonic() == pytest.approx(left, abs=1.0)


def test_a_person_s_interrupt_has_no_deadline() -> None:
    with listening(Interrupt(grace_s=0.01)) as interrupt:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.02)
        assert not interrupt.late


LOST = """
import os, sys
from rlkit.tracking.terminal import outlive_terminal
outlive_terminal()
print("shown", flush=True)
sys.stdin.readline()
for _ in range(3):
    print("lost" * 9000)
    print("lost", file=sys.stderr, flush=True)
os.write(int(sys.argv[1]), b"it went on")
"""


def test_what_cannot_be_shown_ends_nothing() -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", LOST, str(write)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[write],
    )
    os.close(write)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"shown\n"
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(20) == 0
    assert os.read(read, 99) == b"it went on"
    os.close(read)


# What starts ranks. These stand for real ones: shells that say what they hear.

RANK = """#!/bin/sh
trap 'echo TERM >> $HEARD.$RANK; sleep 0.$RANK; exit 143' TERM
trap 'echo INT >> $HEARD.$RANK; sleep 0.$RANK; exit 130' INT
trap 'echo HUP >> $HEARD.$RANK; sleep 0.$RANK; exit 129' HUP
echo $$ > $HEARD.$RANK
while :; do sleep 0.05; done
"""
PARENT = """
import sys
from rlkit.assembly import launch
sys.executable = sys.argv[1]
sys.exit(launch.launch(2, []))
"""


def wait_for(there: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.02)


@contextmanager
def parent_of_two(
    folder: Path, attach: str = "", stdin: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[Path]]]:
    rank, heard = folder / "rank", [folder / "heard.0", folder / "heard.1"]
    rank.write_text(RANK)
    rank.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", attach + PARENT, str(rank)],
        stdin=stdin,
        env={**os.environ, "HEARD": str(folder / "heard")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: all(file.is_file() and file.read_text() for file in heard))
    yield process, heard
    for file in heard:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text().split()[0]), 0)


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGTERM, "TERM"), (signal.SIGHUP, "HUP"), (signal.SIGINT, "TERM")]
)
def test_what_starts_ranks_passes_signals_on_and_waits_for_all(number: int, told: str, tmp_path: Path) -> None:
    with parent_of_two(tmp_path) as (process, heard):
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert [file.read_text().split()[1:] for file in heard] == [[told], [told]]
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_an_interrupt_from_the_terminal_reaches_each_rank_once(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    attach = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY)"
    with parent_of_two(tmp_path, attach, theirs) as (process, heard):
        os.write(ours, b"\x03")
        assert process.wait(20) == 130
        assert [file.read_text().split()[1:] for file in heard] == [["INT"], ["INT"]]
    os.close(ours)
    os.close(theirs)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody is told when its parent ends")
def test_ranks_whose_parent_is_killed_are_told_to_end(tmp_path: Path) -> None:
    with parent_of_two(tmp_path) as (process, heard):
        process.kill()
        process.wait(20)
        wait_for(lambda: all(len(file.read_text().split()) > 1 for file in heard))
        assert [file.read_text().split()[1:] for file in heard] == [["TERM"], ["TERM"]]
        wait_for(lambda: not any(Path(f"/proc/{file.read_text().split()[0]}").exists() for file in heard))


def test_twice_interrupted_ranks_are_killed(tmp_path: Path) -> None:
    with parent_of_two(tmp_path) as (process, heard):
        for pid in (int(file.read_text()) for file in heard):
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGKILL
