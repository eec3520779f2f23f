"""What moves together, in words: equal layers as one line. For `--explain`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from .analysis import AxisAnalysis, Group

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")

_MOST_WEIGHTS = 8
"""So many weights of a group are named."""


def describe_groups(axes: AxisAnalysis, roles: Collection[str] = ()) -> str:
    """A line for each sort of group of these roles (all, by default), the same in all layers; with what each is in."""
    families: dict[tuple[str, ...], list[Group]] = {}
    for group in axes.groups.values():
        if not roles or group.role in roles:
            families.setdefault((group.role, *_lines(group)), []).append(group)
    lines = []
    for (role, moving, why), groups in families.items():
        times = f"{len(groups)} x " if len(groups) > 1 else ""
        lines.append(f"{times}{_sizes(groups)} {role}: {moving}")
        if why:
            lines.append(f"    {why}")
    return "\n".join(lines)


def _lines(group: Group) -> tuple[str, str]:
    places = list(dict.fromkeys(f"{_NUMBER.sub('*', place.weight)}:{place.axis}" for place in group.places))
    more = f" and {len(places) - _MOST_WEIGHTS} more" if len(places) > _MOST_WEIGHTS else ""
    reasons = list(dict.fromkeys(re.sub(r"\d+", "*", why) for why in group.fixed))
    return ", ".join(places[:_MOST_WEIGHTS]) + more, f"stays: {'; '.join(reasons[:3])}" if reasons else ""


def _sizes(groups: Iterable[Group]) -> str:
    sizes = sorted({group.size for group in groups})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
