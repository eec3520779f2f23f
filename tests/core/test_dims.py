"""Symbolic sizes: arithmetic agrees with integers, the canonical form with equality, text with parsing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irlab.dims import (
    Dim,
    Size,
    floordiv,
    maximum,
    minimum,
    mod,
    parse,
    substitute,
    symbol,
    symbols,
)

NAMES = ("batch", "seq", "past")


@st.composite
def sizes(draw: st.DrawFn, depth: int = 3) -> Size:
    if depth == 0 or draw(st.booleans()):
        return draw(st.one_of(st.integers(0, 5), st.sampled_from(NAMES).map(symbol)))
    a, b = draw(sizes(depth - 1)), draw(sizes(depth - 1))
    match draw(st.sampled_from("+-*/%<>")):
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "/":
            return floordiv(a, b if b != 0 else 1)
        case "%":
            return mod(a, b if b != 0 else 1)
        case "<":
            return minimum(a, b)
    return maximum(a, b)


BINDINGS = st.fixed_dictionaries({name: st.integers(1, 9) for name in NAMES})


def value(size: Size, bindings: dict[str, int]) -> int | None:
    """The number that a size stands for, or None where it divides by zero."""
    try:
        result = substitute(size, bindings)
    except ZeroDivisionError:
        return None
    assert isinstance(result, int)
    return result


@given(sizes(), sizes(), BINDINGS)
def test_arithmetic_agrees_with_integers(a: Size, b: Size, bindings: dict[str, int]) -> None:
    x, y = value(a, bindings), value(b, bindings)
    if x is None or y is None:
        return
    assert value(a + b, bindings) == x + y
    assert value(a - b, bindings) == x - y
    assert value(a * b, bindings) == x * y
    assert value(minimum(a, b), bindings) == min(x, y)
    assert value(maximum(a, b), bindings) == max(x, y)
    if b != 0 and y != 0:
        assert value(floordiv(a, b), bindings) == x // y
        assert value(mod(a, b), bindings) == x % y


@given(sizes())
def test_text_reads_back_as_the_same_object(size: Size) -> None:
    again = parse(str(size))
    assert again is size if isinstance(size, Dim) else again == size


@given(sizes(), sizes())
def test_equal_polynomials_are_one_object(a: Size, b: Size) -> None:
    left, right = (a + b) * (a + b), a * a + b * b + a * b * 2
    assert left is right if isinstance(left, Dim) else left == right


def test_exact_division_simplifies() -> None:
    batch, seq = symbol("batch"), symbol("seq")
    assert floordiv(batch * seq * 6, seq * 2) == batch * 3
    assert mod(batch * seq * 6, seq * 2) == 0
    assert str(floordiv(seq + 1, 2)) == "((seq + 1) // 2)"
    assert symbols(floordiv(seq + batch, 2) + 1) == {"batch", "seq"}


@pytest.mark.parametrize("text", ["", "seq +", "f(x)", "seq ** 2", "1.5", "a.b", "seq // 0", "True", "(" * 500])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_dividing_by_zero_is_refused() -> None:
    with pytest.raises(ZeroDivisionError):
        floordiv(symbol("seq"), 0)
    with pytest.raises(ZeroDivisionError):
        mod(symbol("seq"), 0)
