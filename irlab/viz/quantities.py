"""How are large numbers told to a reader? In few digits, with a unit."""

from __future__ import annotations

from ..dims import Size

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")


def bytes_text(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    return _scaled(count, 1024, _BINARY)


def count_text(count: int) -> str:
    """1234567 -> "1.23 M"."""
    return _scaled(count, 1000, _DECIMAL)


def flops_text(flops: Size | None) -> str:
    """A known number in few digits, a symbolic one as it stands, "unknown" for None."""
    if flops is None:
        return "unknown"
    return f"{count_text(flops)}FLOP" if isinstance(flops, int) else f"{flops} FLOP"


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    exponent = 0
    while abs(number) >= base and exponent < len(units) - 1:
        number /= base
        exponent += 1
    digits = f"{number:.0f}" if not exponent or abs(number) >= 100 else f"{number:.3g}"
    return f"{digits} {units[exponent]}" if units[exponent] else digits
