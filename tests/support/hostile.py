"""Texts made to hang, crash or fool a verifier, the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Callable

ODD = (
    "\0", "\u200b", "\u200e", "\u202e", "\u2066", "\ufeff", "\ufffe", "\U0001f600", "\u0661\u0662",
    "\u1d7d8", "\u2460", "\u00bd", "\u00b2", "\u2044", "e\u0301", "\ud800", "\x1b[2J", "\x7f",
    "\u2212", "\uff11", "\u3007", "\u0e51", "\u0bf0",
)  # fmt: skip


def hostile_texts(count: int, seed: int = 0) -> list[str]:
    """``count`` texts, each with an answer that is marked in one of the usual ways, or not."""
    draw = random.Random(seed)
    texts = []
    for number in range(count):
        body = KINDS[number % len(KINDS)](draw)
        mark = draw.choice(
            ("\\boxed{%s}", "Answer: %s", "Answer: $%s$", "$$%s$$", "%s", "\\[%s\\]")
        )
        texts.append(mark.replace("%s", body))
    return texts


def _nested(draw: random.Random) -> str:
    opening, closing = draw.choice(
        (("(", ")"), ("{", "}"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("\\left(", "\\right)"),
         ("|", "|"), ("\\boxed{", "}"), ("-", ""), ("\\begin{pmatrix}", "\\end{pmatrix}"),
         ("[", "]"), ("f(", ")"), ("2^{", "}"))
    )  # fmt: skip
    depth = draw.choice((20, 200, 2000, 20_000))
    return opening * depth + "1" + closing * draw.choice((depth, depth - 1, 0))


def _power(draw: random.Random) -> str:
    base, height = draw.randint(2, 99), draw.randint(2, 6)
    if draw.random() < 0.3:
        return "**".join([str(base)] * height)
    return "^{".join([str(base)] * height) + "}" * (height - 1)


def _digits(draw: random.Random) -> str:
    length = draw.choice((100, 4300, 4301, 50_000, 500_000))
    number = "".join(draw.choice("0123456789") for _ in range(50)) * (length // 50)
    return draw.choice(
        (number, "0." + number, number + "/" + number, "1e" + number[:9], "." + number)
    )


def _unicode(draw: random.Random) -> str:
    return "".join(
        draw.choice((*ODD, "1", "2", "+", "x", "\\", "{")) for _ in range(draw.randint(1, 80))
    )


def _unclosed(draw: random.Random) -> str:
    pieces = ("\\frac{1", "\\boxed{", "\\begin{cases}", "$", "$$", "\\[", "\\text{", "\\left[",
              "^{", "_{", "\\sqrt[", "{", "\\\\", "&", "\\", "%", "#")  # fmt: skip
    return "".join(draw.choice(pieces) for _ in range(draw.randint(1, 300)))


def _factorials(draw: random.Random) -> str:
    number = draw.choice((20, 9999, 99_999_999))
    return draw.choice(
        (f"{number}!", f"({number}!)!", f"{number}" + "!" * 40,
         f"\\binom{{{number}}}{{{number // 2}}}", f"\\Gamma({number})",
         f"\\sum_{{n=1}}^{{{number}}} n!",
         f"\\prod_{{n=1}}^{{{number}}} \\sin(n x)")
    )  # fmt: skip


def _matrix(draw: random.Random) -> str:
    size = draw.choice((3, 12, 40))
    row = "&".join(draw.choice(("x", "1", "\\frac{1}{x}", "x^{99}")) for _ in range(size))
    matrix = "\\begin{pmatrix}" + "\\\\".join([row] * size) + "\\end{pmatrix}"
    return draw.choice((matrix, matrix * 3, matrix + "^{99}", f"\\det {matrix}", matrix + "^{-1}"))


def _calculus(draw: random.Random) -> str:
    return draw.choice(
        ("\\int_0^{\\infty} \\sin(x^{x}) e^{-x^{7}} dx",
         "\\lim_{x \\to 0} \\frac{\\sin^{99} x}{x^{99}}",
         "\\int \\int \\int \\frac{1}{x^5+x+1} dx dy dz", "x^{5}-x-1=0",
         "\\sin(\\sin(\\sin(x)))=x^{x}",
         "\\sum_{n=1}^{\\infty} \\frac{1}{n^{n}}", "\\frac{d^{50}}{dx^{50}} e^{x^2}",
         "(x+y+z+1)^{60}", "\\{" + ",".join(f"x_{n}" for n in range(300)) + "\\}")
    )  # fmt: skip


def _long(draw: random.Random) -> str:
    piece = draw.choice(
        ("1+", "x,", "1 or ", "\\frac{1}{2}+", "a=b=", "\\{1\\}\\cup", "1<", "$1$ and ")
    )
    return piece * draw.choice((50, 1000, 20_000)) + "1"


def _code(draw: random.Random) -> str:
    return draw.choice(
        ("__import__('os').system('kill -9 $PPID')", "exec('while 1: pass')",
         "().__class__.__bases__[0]",
         "lambda: (yield)", "open('/proc/self/mem','wb')", "exit()", "1 if 1 else 2",
         "9**9**9", "0x" + "f" * 9999)
    )  # fmt: skip


KINDS: tuple[Callable[[random.Random], str], ...] = (
    _nested, _power, _digits, _unicode, _unclosed, _factorials, _matrix, _calculus, _long, _code,
)  # fmt: skip
