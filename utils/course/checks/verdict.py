"""What makes a function a check: it returns praise or raises `Mistake`, and the reader is told in words."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


class Mistake(Exception):
    """What is wrong with an answer, in words that name the likely mistake."""


def check(judge: Callable[..., str] | None = None, *, ours: Callable | None = None) -> Callable:
    """Make a check of a function (answer) -> praise that raises `Mistake`. `@check` or `@check(ours=...)`.

    ours: a right answer. The check returns what the notebook goes on with: the reader's answer where it is right, else
    `ours`. A stub raises NotImplementedError. Any other error is told like a mistake, so that "Run all" goes on.
    """
    if judge is None:
        return functools.partial(check, ours=ours)
    otherwise = "" if ours is None else "(the notebook goes on with our answer)"

    @functools.wraps(judge)
    def told(answer):
        try:
            print(f"right: {judge(answer)}")
            return answer
        except NotImplementedError:
            print(f"not attempted yet {otherwise}".rstrip())
        except Mistake as mistake:
            print(f"not yet: {mistake}\n{otherwise}".rstrip())
        except Exception as error:
            first_line = (str(error).strip() or "no message").splitlines()[0]
            print(f"not yet: your code stopped with {type(error).__name__}: {first_line}\n{otherwise}".rstrip())
        return ours

    return told


def expect(condition: object, mistake: str) -> None:
    """Raise `Mistake` unless the condition holds."""
    if not condition:
        raise Mistake(mistake)


def expect_tensor(answer: object, shape: tuple[int, ...]) -> torch.Tensor:
    """The answer, if it is a tensor of this shape."""
    expect(answer is not None, "your function returns None: does it end in `return`?")
    expect(isinstance(answer, torch.Tensor), f"a tensor was asked for, your function returns {type(answer).__name__}")
    expect(answer.shape == shape, f"the shape must be {shape}, yours is {tuple(answer.shape)}")
    return answer


def close(a: object, b: object, tolerance: float = 1e-5) -> bool:
    """Whether two tensors or numbers agree to `tolerance`, relative to the larger of 1 and their size."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)
