"""Real signals to real processes: a parent that is told to stop, and workers whose parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adaptive_margin.messages import is_problem, problem
from adaptive_margin.processes import ProcessDiedError, Workers, ends_in_order
from tests.platforms import needs_proc, needs_processes

pytestmark = needs_processes

POOL = """
import os, signal, sys, time
from pathlib import Path
from adaptive_margin.processes import Workers, ends_in_order

if __name__ != "__main__" and sys.argv[2] == "importing":
    Path(sys.argv[1], str(os.getpid())).write_text("")
    time.sleep(300)

def work(place, saves, idle=False):
    if saves:  # as a run in adaptive_margin.training.train
        def stop(number, frame):
            time.sleep(2)
            Path(place).with_name("saved").write_text("")
            raise SystemExit(143)
        signal.signal(signal.SIGTERM, stop)
    Path(place, str(os.getpid())).write_text("")
    time.sleep(0 if idle else 300)

if __name__ == "__main__":
    place, what = sys.argv[1:]
    with ends_in_order(), Workers(2) as workers:
        list(workers.results(work, [(place, what in ("saving", "idle")), (place, False, what == "idle")]))
"""
ALONE = """
import os, subprocess, sys, time
from pathlib import Path
from adaptive_margin.processes import end_with_parent
if len(sys.argv) > 2:
    subprocess.run([sys.executable, sys.argv[0], sys.argv[1]])
end_with_parent()
Path(sys.argv[1], str(os.getpid())).write_text("")
time.sleep(300)
"""


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waited for does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def until(condition: object, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


def start(code: str, folder: Path, *words: str, new_session: bool = False) -> subprocess.Popen[bytes]:
    (folder / "script.py").write_text(code)
    (folder / "pids").mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(folder / "script.py"), str(folder / "pids"), *words]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=new_session,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # tests may run where it is ignored
    )


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("code", "words", "workers"),
    [(POOL, "plain", 2), (POOL, "saving", 2), (POOL, "idle", 2), (POOL, "importing", 2), (ALONE, "child", 1)],
)
def test_workers_end_with_their_parent(
    tmp_path: Path, code: str, words: str, workers: int, number: signal.Signals
) -> None:
    """However it ends, whatever they do: one that has to save does not keep the others, and waits for none."""
    parent = start(code, tmp_path, words)
    assert until(lambda: len(list((tmp_path / "pids").iterdir())) == workers)
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    assert all(map(is_there, pids))
    parent.send_signal(number)
    ended = parent.wait(60)
    assert ended == (143 if number == signal.SIGTERM and code is POOL else -number)
    assert until(lambda: not any(map(is_there, pids)), 10)
    assert (tmp_path / "saved").exists() == (words in ("saving", "idle"))


def twice(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), -number)
    if number == 3:
        raise ValueError(problem("number", "even", number, "add one"))
    if number == 4:
        time.sleep(1.5)
    return 2 * number


def test_a_worker_that_dies_or_raises_leaves_the_others() -> None:
    ticks: list[int] = []
    with Workers(2) as workers:
        items = [(n,) for n in (1, -signal.SIGKILL, 2, 3, 4)]
        found = {n: found for n, *found in workers.outcomes(twice, items, every_second=lambda: ticks.append(1))}
        assert [found[n][0] for n in (0, 2, 4)] == [2, 4, 8]
        assert isinstance(found[1][1], ProcessDiedError)
        assert str(found[1][1]) == "a process died (exit status -9)"
        assert is_problem(found[3][1])
        assert "in twice" in str(found[3][1].__cause__)
        assert sorted(workers.results(twice, [(1,), (2,)])) == [(0, 2), (1, 4)]  # with those that are left
        with pytest.raises(ProcessDiedError):
            list(workers.results(twice, [(-signal.SIGTERM,)]))
        assert ticks


def leave(path: Path) -> None:
    path.touch()


def test_a_worker_goes_on_while_the_caller_takes_its_time_with_an_outcome(tmp_path: Path) -> None:
    with Workers(1) as workers:
        paths = [tmp_path / name for name in "abc"]
        outcomes = workers.outcomes(leave, [(path,) for path in paths])
        next(outcomes)
        assert until(paths[1].exists, 30)  # though nobody has asked for the second outcome yet
        assert not paths[2].exists()
        assert [number for number, *_ in outcomes] == [1, 2]


def test_an_answer_that_nobody_waited_for_is_not_taken_for_another() -> None:
    with Workers(2) as workers:
        with pytest.raises(ValueError, match="even"):
            list(workers.results(twice, [(3,), (4,)]))  # the other task goes on
        assert sorted(workers.results(twice, [(5,), (6,)])) == [(0, 10), (1, 12)]
        still_at_work = workers.results(twice, [(1,), (4,)])
        next(still_at_work)
    still_at_work.close()


def test_errors_are_outcomes_without_workers_too() -> None:
    one, (_, value, error), last = Workers(0).outcomes(twice, [(1,), (3,), (2,)])
    assert (one, value, last) == ((0, 2, None), None, (2, 4, None))
    assert is_problem(error)
    with pytest.raises(ValueError, match="even"):
        list(Workers(0).results(twice, [(3,)]))


def pid() -> int:
    return os.getpid()


INTERRUPTED = """
import os, signal
from multiprocessing.context import SpawnProcess
from adaptive_margin.processes import Workers

def start(self, begin=SpawnProcess.start):
    os.kill(os.getpid(), signal.SIGINT)
    begin(self)

if __name__ == "__main__":
    SpawnProcess.start = start
    try:
        with Workers(1) as workers:
            print(list(workers.results(pow, [(2, 3)])))
    except KeyboardInterrupt:
        print("heard")
"""


def test_ctrl_c_while_a_worker_is_started_is_heard(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("heard\n", "", 0)


def test_a_program_without_an_output_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with ends_in_order():
        pass


def test_workers_are_kept_for_as_many_tasks_as_they_may_have() -> None:
    with Workers(1, tasks_each=2) as workers:
        first, second, third = (number for _, number in workers.results(pid, [()] * 3))
        assert first == second != third
    assert not is_there(first)
    assert not is_there(third)


def test_a_program_without_a_main_guard_starts_no_chain_of_processes(tmp_path: Path) -> None:
    code = """
import operator
from adaptive_margin.processes import Workers
with Workers(1) as workers:
    print(list(workers.results(operator.add, [(1, 2)])))
"""
    (tmp_path / "script.py").write_text(code)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(tmp_path / "script.py")]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 1
    assert "if __name__ == '__main__':" in ended.stderr
    assert "ProcessDiedError" in ended.stderr


def test_ctrl_c_is_left_to_the_parent(tmp_path: Path) -> None:
    parent = start(POOL, tmp_path, "saving", new_session=True)
    assert until(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    assert parent.wait(60) == -signal.SIGINT
    assert (tmp_path / "saved").exists()


def test_a_signal_in_another_thread_is_left_alone() -> None:
    code = """
import threading
from adaptive_margin.processes import ends_in_order
thread = threading.Thread(target=ends_in_order().__enter__)
thread.start()
thread.join()
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
