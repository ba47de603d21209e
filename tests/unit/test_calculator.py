"""What the calculator computes, and what it says of what it does not."""

from __future__ import annotations

import pytest
from rlkit_rewards.calculator import calculator
from rlkit_rewards.toolbox import ToolError


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("3*7+5", "26"),
        (" (3 + 4) * 2.5 ", "17.5"),
        ("0.1 + 0.2", "0.3"),
        ("1/3*3", "1"),
        ("2/3", "0.6666666666666666"),
        ("2^10", "1024"),
        ("-2**2", "-4"),
        ("2**-2", "0.25"),
        ("3 \u00d7 4 \u00f7 6 \u2212 1", "1"),
        ("17 // 5 + 17 % 5", "5"),
        ("(7//2)/2", "1.5"),
        ("sqrt(16) + sqrt(2.25)", "5.5"),
        ("sqrt(2)", "1.4142135623730951"),
        ("factorial(20)", "2432902008176640000"),
        ("max(3, 8) - min(3, 8) + abs(-1)", "6"),
        ("round(2/3, 2)", "0.67"),
        ("round(7.6) + floor(1.9) + ceil(1.1)", "11"),
        ("log(e) + log(8, 2)", "4"),
        ("cos(pi)", "-1"),
        ("gcd(12, 18) + comb(5, 2)", "16"),
        ("10**30 + 1", "1000000000000000000000000000001"),
    ],
)
def test_it_computes(expression: str, result: str) -> None:
    assert calculator(expression) == result


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("1/0", "division by zero"),
        ("9**9**9", "a number on the way is too large"),
        ("10**400 * 1.5 + pi * 10**400", "a number on the way is too large"),
        ("factorial(10**9)", "a number on the way is too large"),
        ("1e999", "a number on the way is too large"),
        ("1 +", "that is no expression: invalid syntax"),
        ("", "that is no expression"),
        ("1,234 + 1", "it has a comma: write 1234 for 1,234"),
        ("x + 1", "'x' is no arithmetic: write numbers"),
        ("__import__('os').system('ls')", "is no arithmetic"),
        ("(1).real", "is no arithmetic"),
        ("'a' * 9", "is no arithmetic"),
        ("True + 1", "is no arithmetic"),
        ("sqrt(-1)", "it has no real value"),
        ("log(0)", "it has no value: math domain error"),
        ("sqrt()", "it has no value"),
        ("sin(1, 2)", "it has no value"),
        ("factorial(1.5)", "1.5 is no whole number"),
        ("(" * 250 + "1" + ")" * 250, "that is no expression: too many nested parentheses"),
        ("-" * 999 + "1", "the expression is nested too deeply"),
        ("1" * 2000, "the expression has 2,000 characters, and 1,000 is the most"),
    ],
)
def test_what_it_refuses(expression: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        calculator(expression)
