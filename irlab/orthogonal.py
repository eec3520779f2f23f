"""Which orthogonal matrices spread numbers evenly, and how are rows multiplied by one? Hadamard's, of entries +-1.

A Hadamard matrix of order n = m 2^k is the Kronecker product of one of order m, which Paley's constructions give for
primes, and of the Walsh-Hadamard matrix, which is applied by additions. A diagonal of random signs before it makes what
is spread evenly independent of how the numbers lay (Tseng et al. 2024, QuIP#).
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from .errors import InputError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

KINDS: Final = ("hadamard", "orthogonal")


def multiplied(rows: Floats, kind: str, seed: int) -> Floats:
    """f32[..., n] times the random orthogonal matrix of this kind, order and seed.

    "hadamard": random signs, then a Hadamard matrix over sqrt(n); "orthogonal": uniformly distributed (Haar). Raises
    InputError where no Hadamard matrix of the order is known.
    """
    size = rows.shape[-1]
    if kind == "orthogonal":
        return rows @ _haar(size, seed).astype(np.float32)
    core = _core(size)
    scale = np.float32(1 / np.sqrt(size))
    lead = rows.shape[:-1]
    spread = (rows * (random_signs(size, seed) * scale)).reshape(*lead, size // len(core), len(core))
    if len(core) > 1:
        spread = spread @ core.T.astype(np.float32)
    step = 1
    while step * len(core) < size:
        pairs = spread.reshape(*lead, -1, 2, step, len(core))
        first, second = pairs[..., 0, :, :], pairs[..., 1, :, :]
        spread = np.stack((first + second, first - second), axis=-3)
        step *= 2
    return spread.reshape(rows.shape)


def random_signs(size: int, seed: int) -> Floats:
    """f32[size] of +1 and -1."""
    return np.where(np.random.default_rng((seed, size)).random(size) < 0.5, np.float32(-1), np.float32(1))


def has_hadamard(size: int) -> bool:
    """Whether a Hadamard matrix of this order is known here."""
    return _core_order(size) > 0


def _core(size: int) -> Doubles:
    order = _core_order(size)
    if not order:
        raise InputError(f"no Hadamard matrix of order {size} is known here", "choose kind=orthogonal")
    return _paley(order)


@cache
def _core_order(size: int) -> int:
    """The least order m with a construction of which `size` is a multiple by a power of two; 0 if there is none."""
    order = size
    while order % 2 == 0:
        order //= 2
    while order <= size:
        if order == 1 or (order % 4 == 0 and _field(order)[0]):
            return order
        order *= 2
    return 0


def _field(order: int) -> tuple[int, int]:
    """The prime p and the number of Paley's construction that give a Hadamard matrix of `order`; (0, 0) if none."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return order - 1, 1
    if _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1:
        return order // 2 - 1, 2
    return 0, 0


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


@cache
def _paley(order: int) -> Doubles:
    """A Hadamard matrix of `order` (Paley 1933): I + S, or S (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]], with
    S made of Legendre symbols of differences."""
    if order == 1:
        return np.ones((1, 1))
    prime, construction = _field(order)
    squares = np.unique(np.arange(1, prime) ** 2 % prime)
    symbol = np.where(np.isin(np.arange(prime), squares), 1.0, -1.0)
    symbol[0] = 0
    conference = np.ones((prime + 1, prime + 1))
    conference[0, 0] = 0
    conference[1:, 1:] = symbol[(np.arange(prime)[:, None] - np.arange(prime)[None, :]) % prime]
    if construction == 1:
        conference[1:, 0] = -1
        return conference + np.eye(order)
    return np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(prime + 1), [[1, -1], [-1, -1]])


@cache
def _haar(size: int, seed: int) -> Doubles:
    """A uniformly distributed orthogonal matrix: the QR decomposition of normal numbers, signs made unique."""
    q, r = np.linalg.qr(np.random.default_rng((seed, size)).standard_normal((size, size)))
    fixed: Doubles = q * np.sign(np.diagonal(r))
    return fixed
