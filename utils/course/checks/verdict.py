"""What makes a function a check: it returns praise or raises `Mistake`, and the reader is told in words."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


class Mistake(Exception):
    """What is wrong with an answer, in words that name the likely mistake."""


def check(judge: Callable[..., str]) -> Callable[..., None]:
    """Make a check of a function (answer) -> praise that raises `Mistake`.

    A stub raises NotImplementedError. Any other error of the answer is told like a mistake, so that "Run all" goes on.
    """

    @functools.wraps(judge)
    def told(*answers) -> None:
        try:
            print(f"right: {judge(*answers)}")
        except NotImplementedError:
            print("not attempted yet")
        except Mistake as mistake:
            print(f"not yet: {mistake}")
        except Exception as error:
            first_line = (str(error).strip() or "no message").splitlines()[0]
            print(f"not yet: your code stopped with {type(error).__name__}: {first_line}")

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
