"""Processes that a notebook starts: real ones end with what they printed or with an error, pretended ones meet."""

import pytest
import torch
import torch.distributed as dist

from utils.course.processes import launch, launch_and_kill, pretend

needs_distributed = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


@needs_distributed
def test_what_processes_print_comes_back_and_a_failure_is_an_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint('hello', os.environ['RANK'], *sys.argv[1:])")
    assert sorted(launch(2, script, "--run", "x").splitlines()) == ["hello 0 --run x", "hello 1 --run x"]
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        launch(2, script)


def tell(*words):
    import os

    print("I am", os.environ["RANK"], *words)


@needs_distributed
def test_a_function_is_a_program_of_its_own():
    assert sorted(launch(2, tell, "with", 3).splitlines()) == ["I am 0 with 3", "I am 1 with 3"]


@needs_distributed
def test_a_process_is_killed_when_it_is_time(tmp_path):
    script, ready = tmp_path / "script.py", tmp_path / "ready-1"
    script.write_text(
        "import os, sys, time\nopen(sys.argv[1] + os.environ['RANK'], 'w')\n"
        "time.sleep(60 if os.environ['RANK'] == '1' else 1)"
    )
    status, printed = launch_and_kill(2, script, tmp_path / "ready-", rank=1, when=ready.exists)
    assert status == 1 and "Signal 9" in printed
    with pytest.raises(RuntimeError, match="before one was killed"):
        script.write_text("")
        launch_and_kill(1, script, rank=0, when=lambda: False)


def test_pretended_processes_get_the_sum_of_all_in_each():
    def work(rank, all_reduce):
        first = all_reduce(torch.tensor([float(rank), 1.0]))
        return first.tolist(), all_reduce(rank).item()

    assert pretend(3, work) == [([3.0, 3.0], 3)] * 3


def test_whoever_waits_for_nobody_is_told():
    with pytest.raises(TimeoutError, match="never comes"):
        pretend(2, lambda rank, all_reduce: all_reduce(1) if rank else None, 0.1)
    with pytest.raises(ZeroDivisionError):
        pretend(2, lambda rank, all_reduce: all_reduce(1) if rank else 1 / 0)
