"""How notebooks start processes: a function as a program of its own, and pretended processes."""

import pytest
import torch

from utils.course.processes import launch, pretend


def tell(*words):
    import os

    print("I am", os.environ["RANK"], *words)


def fails():
    raise SystemExit("no more")


def test_a_function_is_a_program_of_several_processes():
    printed = launch(2, tell, "with", 3)
    assert {"I am 0 with 3", "I am 1 with 3"} <= {*printed.splitlines()}


def test_what_a_process_says_at_its_end_is_told():
    with pytest.raises(RuntimeError, match="no more"):
        launch(1, fails)


def test_pretended_processes_find_the_sum_of_all():
    results = pretend(3, lambda rank, all_reduce: all_reduce(torch.tensor([1.0, rank])))
    assert [result.tolist() for result in results] == [[3, 3]] * 3


def test_a_pretended_process_does_not_wait_for_ever():
    with pytest.raises(TimeoutError, match="never comes"):
        pretend(2, lambda rank, all_reduce: all_reduce(1) if rank else 0, 0.1)
