"""The exercises of the notebooks: what a reader is told for a stub, the solution and typical wrong answers."""

import contextlib
import importlib
import io
import re

import pytest
import torch

from tests.lessons import LESSONS, Exercise, Lesson
from utils.course.checks.verdict import Mistake, check, expect, expect_tensor

EXERCISES = [(lesson, exercise) for lesson in LESSONS for exercise in lesson.exercises()]
NAMES = [f"{lesson.name}-{exercise.name}" for lesson, exercise in EXERCISES]


def answers_to(lesson: Lesson):
    """WRONG, {check: [(code, words that must meet it)]}; ALSO_RIGHT, {check: [code]}, answers unlike our solution."""
    return importlib.import_module(f"tests.exercises.{lesson.name.partition('_')[2]}")


def told(lesson: Lesson, code: str) -> str:
    """What is printed when `code` runs with the notebook's imports and nothing else of it."""
    printed, names = io.StringIO(), {}
    exec(lesson.imports(), names)
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue().rstrip("\n")


@pytest.mark.parametrize("lesson, exercise", EXERCISES, ids=NAMES)
def test_a_stub_is_not_attempted_yet(lesson: Lesson, exercise: Exercise):
    assert told(lesson, exercise.stub).startswith("not attempted yet")


@pytest.mark.parametrize("lesson, exercise", EXERCISES, ids=NAMES)
def test_the_solution_is_right(lesson: Lesson, exercise: Exercise):
    praise = told(lesson, f"{exercise.solution}\n{exercise.call}")
    assert praise.startswith("right: ") and len(praise.splitlines()) == 1


@pytest.mark.parametrize("lesson, exercise", EXERCISES, ids=NAMES)
def test_other_right_answers_are_right(lesson: Lesson, exercise: Exercise):
    for code in getattr(answers_to(lesson), "ALSO_RIGHT", {}).get(exercise.name, []):
        assert told(lesson, f"{code}\n{exercise.call}").startswith("right: "), code


@pytest.mark.parametrize("lesson, exercise", EXERCISES, ids=NAMES)
def test_what_follows_an_exercise_gets_the_readers_answer_or_ours(lesson: Lesson, exercise: Exercise):
    if "=" not in exercise.call:
        pytest.skip("nothing follows from this one")
    name = exercise.call.partition(" =")[0]
    for code, is_theirs in ((exercise.solution, True), (exercise.stub.replace(exercise.call, ""), False)):
        names = {}
        exec(lesson.imports(), names)
        exec(code, names)
        theirs = names[name]
        with contextlib.redirect_stdout(io.StringIO()):
            exec(exercise.call, names)
        assert callable(names[name]) and (names[name] is theirs) == is_theirs


@pytest.mark.parametrize("lesson, exercise", EXERCISES, ids=NAMES)
def test_wrong_answers_are_told_their_mistake(lesson: Lesson, exercise: Exercise):
    answers = answers_to(lesson).WRONG[exercise.name]
    assert len(answers) >= 3
    messages = [told(lesson, f"{code}\n{exercise.call}") for code, _ in answers]
    for message, (code, words) in zip(messages, answers, strict=True):
        assert message.startswith("not yet: ") and "your code stopped" not in message, f"{code}\n{message}"
        assert words in message, f"{code}\n{message}"
        assert len(message.splitlines()) <= 4 and all(len(line) <= 120 for line in message.splitlines()), message
    assert len(set(messages)) == len(messages), "each mistake has a message of its own"


@pytest.mark.parametrize("lesson", [lesson for lesson in LESSONS if lesson.exercises()], ids=lambda lesson: lesson.name)
def test_wrong_answers_are_for_exercises_that_exist(lesson: Lesson):
    assert set(answers_to(lesson).WRONG) == {exercise.name for exercise in lesson.exercises()}


def test_a_check_tells_and_never_raises(capsys):
    @check
    def check_sum(add) -> str:
        """Sum of two numbers."""
        expect(add(1, 2) == 3, "1 + 2 is 3")
        return "sums"

    def stub(a, b):
        raise NotImplementedError

    answers = [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a.b, lambda: 0, stub]
    assert [check_sum(answer) for answer in answers] == [answers[0], None, None, None, None]
    right, wrong, broken, misused, missing = capsys.readouterr().out.splitlines()
    assert missing == "not attempted yet"
    assert (right, wrong) == ("right: sums", "not yet: 1 + 2 is 3")
    assert broken == "not yet: your code stopped with AttributeError: 'int' object has no attribute 'b'"
    assert misused.startswith("not yet: your code stopped with TypeError")
    assert (check_sum.__name__, check_sum.__doc__) == ("check_sum", "Sum of two numbers.")


def test_a_check_gives_what_the_notebook_goes_on_with(capsys):
    @check(ours=max)
    def check_larger(larger) -> str:
        expect(larger(1, 2) == 2, "the larger of 1 and 2 is 2")
        return "it is"

    def mine(a, b):
        return a if a > b else b

    assert check_larger(mine) is mine and check_larger(min) is max
    assert capsys.readouterr().out.splitlines()[2] == "(the notebook goes on with our answer)"


def test_a_tensor_is_expected_in_words():
    for answer, words in ((None, "return"), (1.0, "float"), (torch.zeros(2, 3), "(2, 3)")):
        with pytest.raises(Mistake, match=re.escape(words)):
            expect_tensor(answer, (3, 2))
    assert expect_tensor(torch.zeros(3, 2), (3, 2)).shape == (3, 2)
