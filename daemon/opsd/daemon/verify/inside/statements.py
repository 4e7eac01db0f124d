"""What the text of unit tests would do."""

from __future__ import annotations

import ast

_ACTING = (ast.Assert, ast.For, ast.If, ast.Raise, ast.Try, ast.While, ast.With)


def runs_by_itself(tree: ast.Module) -> bool:
    """Whether the module tests something outside its functions and classes, just by being run."""
    return any(
        isinstance(node, _ACTING)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        for node in tree.body
    )


def defines_tests(tree: ast.Module, *, entry: bool) -> bool:
    """Whether it has test cases, functions called test…, or a check() where ``entry`` is given."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.bases:
            return True
        if isinstance(node, ast.FunctionDef) and (
            node.name.startswith("test") or (entry and node.name == "check")
        ):
            return True
    return False
