"""Fewer cases than all combinations: each value of one axis with each value of every other."""

import itertools
from collections.abc import Iterable
from typing import Any


def covering(**axes: Iterable[Any]) -> tuple[str, list[tuple[Any, ...]]]:
    """The arguments of ``pytest.mark.parametrize`` for cases that hold every pair of values of two axes.

    For axes that do not depend on one another three at a time: with 5, 2, 8 and 3 values 40 cases, not 240.

    Examples
    --------
    >>> covering(a=[1, 2], b="xy", c=[True, False])[1]
    [(1, 'x', True), (1, 'y', False), (2, 'x', False), (2, 'y', True)]
    """
    values = [list(axis) for axis in axes.values()]
    cases = [tuple(enumerate(case)) for case in itertools.product(*(range(len(axis)) for axis in values))]
    pairs = {case: set(itertools.combinations(case, 2)) for case in cases}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs[case] & missing)))
        missing -= pairs[chosen[-1]]
    return ",".join(axes), [tuple(values[axis][place] for axis, place in case) for case in sorted(chosen)]
