"""Lists that come in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar

import typer

Response = TypeVar("Response")
Item = TypeVar("Item")

MAX_PAGE = 1000

LimitOption = Annotated[int, typer.Option("--limit", "-n", min=0, help="At most so many; 0: all.")]


def pages(
    fetch: Callable[[int, str], Response],
    items: Callable[[Response], Iterable[Item]],
    next_token: Callable[[Response], str],
    limit: int,
) -> Iterator[Item]:
    """The items of as many pages as the limit asks for; ``fetch`` takes page size and token."""
    token, left = "", limit
    while True:
        response = fetch(min(left, MAX_PAGE) if limit else MAX_PAGE, token)
        for item in items(response):
            if limit and left == 0:
                return
            yield item
            left -= 1
        token = next_token(response)
        if not token or (limit and left <= 0):
            return
