"""The bad ones among many items: all are tried together, and only what fails is tried again by halves.

So one bad item among a thousand costs about ten attempts more, each of half the size, and none costs one attempt. That
holds for files, batches and rows alike: what is an attempt, and which errors are the items' fault, the caller says.
Every other error passes through: memory that runs out says nothing of what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Fault = TypeVar("Fault", bound=Exception)


def attempt_by_halves(
    items: Sequence[Item], attempt: Callable[[Sequence[Item]], Result], fault: type[Fault]
) -> Iterator[tuple[Sequence[Item], Result | Fault]]:
    """Yield parts of ``items``, in order, each with what ``attempt`` returned for it; a culprit alone with its error.

    An attempt that raises a ``fault`` is made again with each half of its items, down to single ones. Where several
    items fail together of which each is fine alone, they are parts of their own, and there is no culprit.

    Example:
        >>> list(attempt_by_halves(["1", "2", "x", "4"], lambda part: sum(map(int, part)), ValueError))
        [(['1', '2'], 3), (['x'], ValueError("invalid literal for int() with base 10: 'x'")), (['4'], 4)]
    """
    if items:
        yield from _halves(items, attempt, fault, known_to_fail=False)


def find_culprits(
    items: Sequence[Item], attempt: Callable[[Sequence[Item]], object], fault: type[Fault]
) -> Iterator[tuple[Item, Fault]]:
    """Yield each of ``items`` for which ``attempt`` raises a ``fault`` even where it is alone, with that error.

    Of what nobody asks for no attempt is made. To search in rows, give ``range(rows)``: parts of it are ranges.
    """
    for part, result in attempt_by_halves(items, attempt, fault):
        if isinstance(result, fault):
            yield part[0], result


def _halves(
    items: Sequence[Item],
    attempt: Callable[[Sequence[Item]], Result],
    fault: type[Fault],
    *,
    known_to_fail: bool,
) -> Generator[tuple[Sequence[Item], Result | Fault], None, bool]:
    """As :func:`attempt_by_halves`; return whether all went well at once.

    Several items that are known to fail are not tried together once more.
    """
    if len(items) == 1 or not known_to_fail:
        try:
            result = attempt(items)
        except fault as error:
            if len(items) == 1:
                yield items, error
                return False
        else:
            yield items, result
            return True
    middle = len(items) // 2
    first_is_fine = yield from _halves(items[:middle], attempt, fault, known_to_fail=False)
    yield from _halves(items[middle:], attempt, fault, known_to_fail=first_is_fine)
    return False
