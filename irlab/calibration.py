"""Which inputs is a model calibrated and evaluated on? Text, token ids, tables, or what the model says itself.

All become batches of samples of equal length, so that nothing is padded and every row of an activation counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import InputError, UsageError
from .ir import Graph, Module
from .ops import nn, prim

Batch: TypeAlias = "dict[str, npt.NDArray[Any]]"
"""Inputs by name; ids are i64[samples, length]."""

NewIds: TypeAlias = "npt.NDArray[np.int64]"
"""What ids have become, by the old one: i64[tokens], -1 for a token that is gone."""

BATCH_TOKENS: Final = 2048
"""About how many tokens run at a time: bounds the activations of a layer."""

LEAST_TOKENS: Final = 128
"""Fewer say nothing about a model."""

ALL: Final = 1 << 40
"""As many tokens as there are."""

_BYTES_PER_TOKEN: Final = 16
"""More than any text takes on average: so much is read of a long file."""


@dataclass(frozen=True)
class Sample:
    """What to run: `source` is a text file, a file of ids (.npy or .json: one list, or a list of lists), "self", an
    array of ids, or a table of input arrays [samples, ...]. At most `tokens` of it (ALL: the whole), in pieces of
    `length`."""

    source: object
    tokens: int = 32768
    length: int = 512

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.length < 2:
            raise UsageError(f"{self.tokens} tokens in pieces of {self.length} are no sample")

    def batches(self, module: Module, seed: int = 0, new_ids: NewIds | None = None) -> list[Batch]:
        """The batches to run `module` on. Where the source has ids, they become `new_ids`, and pieces with tokens that
        are gone are left out. Raises InputError where nothing can be had."""
        if isinstance(self.source, Mapping):
            table = {name: np.asarray(values) for name, values in self.source.items()}
            return _table_batches(table if new_ids is None else _renumbered_table(table, new_ids))
        if "input_ids" not in {value.name for value in module.graph.inputs}:
            raise InputError("text runs through graphs that read input_ids", "give a table of inputs instead (Python)")
        length = min(self.length, _longest(module))
        rows, what = self._rows(module, length, seed, new_ids)
        vocabulary = _vocabulary(module.graph)
        for row in rows:
            if row.size and not 0 <= int(row.min()) <= int(row.max()) < vocabulary:
                bad = int(row.min()) if row.min() < 0 else int(row.max())
                raise InputError(f"{what} holds the token {bad}, the model knows 0 to {vocabulary - 1}")
        total = sum(row.size for row in rows)
        if total < LEAST_TOKENS and self.tokens < LEAST_TOKENS:  # the request is at fault, not the file
            raise InputError(f"{self.tokens} tokens of {what} are too few", f"allow at least {LEAST_TOKENS}")
        if total < LEAST_TOKENS:
            raise InputError(f"{what} is too short: {total} tokens, at least {LEAST_TOKENS} are needed")
        return _batches_of_rows(rows)

    def _rows(
        self, module: Module, length: int, seed: int, new_ids: NewIds | None
    ) -> tuple[list[npt.NDArray[np.int64]], str]:
        """Samples of ids, and what they were made from in words."""
        source = self.source
        if isinstance(source, str) and source == "self":
            from .decoder import sample

            count = max(1, self.tokens // length)
            return list(sample(module, count, length, seed=seed)), "the model's own text"
        if not isinstance(source, str | Path):
            rows, what = _ids(source, "the calibration ids"), "the calibration ids"
            return _renumbered(_cut(rows, self.tokens, length), new_ids, what), what
        path = Path(source)
        if path.suffix in (".npy", ".json"):
            rows = _cut(_ids(_read_ids(path), str(path)), self.tokens, length)
            return _renumbered(rows, new_ids, str(path)), str(path)
        text = read_text(path, self.tokens * _BYTES_PER_TOKEN)
        return _tokenise(module, text, path, self.tokens, length), str(path)


def read_text(path: Path, max_bytes: int) -> str:
    """The beginning of a UTF-8 text file. Raises InputError for a file that is missing, empty, binary or in another
    encoding."""
    try:
        with open(path, "rb") as file:
            data = bytearray()
            while piece := file.read(min(1 << 20, max_bytes - len(data))):
                data += piece
            more = bool(file.read(1))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not data.strip():
        raise InputError(f"{path} is empty")
    if b"\x00" in data:
        raise InputError(f"{path} is a binary file, not text", "give UTF-8 text, or ids as .npy or .json")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if more and error.start > len(data) - 4:
            return data[: error.start].decode("utf-8")
        found = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise InputError(f"{path} is not UTF-8 text: {found}", "convert it to UTF-8") from None


def _tokenise(module: Module, text: str, path: Path, tokens: int, length: int) -> list[npt.NDArray[np.int64]]:
    from .parity import load_tokenizer

    tokenizer = load_tokenizer(module)
    if tokenizer is None:
        raise InputError(f"{path}: the model has no tokenizer.json to read text with", "give ids as .npy or .json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not _is_causal(module.graph):
        # An encoder reads texts, not a stream: each line is one.
        rows: list[npt.NDArray[np.int64]] = []
        for line in filter(str.strip, text.splitlines()):
            rows.append(np.array(tokenizer.encode(line).ids[:length], np.int64))
            tokens -= rows[-1].size
            if tokens <= 0:
                break
        return rows
    # What the tokenizer puts before a text (<s>) begins every piece of it.
    prefix = tokenizer.encode("").ids
    stream = tokenizer.encode(text, add_special_tokens=False).ids
    room = length - len(prefix)
    pieces = _cut([np.array(stream, np.int64)], tokens * room // length, room)
    return [np.concatenate((np.array(prefix, np.int64), piece)) for piece in pieces]


def _cut(rows: Sequence[npt.NDArray[np.int64]], tokens: int, length: int) -> list[npt.NDArray[np.int64]]:
    """Pieces of `length` of each row, at most `tokens` together; a rest is kept only where a row has nothing else."""
    found: list[npt.NDArray[np.int64]] = []
    for row in rows:
        whole = range(0, row.size - length + 1, length) if row.size >= length else range(1)
        for start in whole:
            if tokens <= 0:
                return found
            found.append(row[start : start + min(length, row.size)])
            tokens -= found[-1].size
    return found


def renumbered(ids: npt.NDArray[np.int64], new_ids: NewIds) -> npt.NDArray[np.int64]:
    """`ids` as they are by now; -1 stays."""
    found: npt.NDArray[np.int64] = np.where(ids < 0, -1, new_ids[ids])
    return found


def _renumbered(rows: list[npt.NDArray[np.int64]], new_ids: NewIds | None, what: str) -> list[npt.NDArray[np.int64]]:
    """Rows of ids as they are by now, without those that have tokens which are gone."""
    if new_ids is None:
        return rows
    for row in rows:
        if row.size and not 0 <= int(row.min()) <= int(row.max()) < len(new_ids):
            raise InputError(f"{what} holds tokens that the model never knew: it knew 0 to {len(new_ids) - 1}")
    found = [row for row in (renumbered(row, new_ids) for row in rows) if (row >= 0).all()]
    if not found:
        raise InputError(
            f"every piece of {what} has tokens that are gone", "let prune-vocab keep those of this data too"
        )
    return found


def _renumbered_table(table: Batch, new_ids: NewIds) -> Batch:
    """The samples of a table whose input_ids have no token that is gone, with ids as they are by now."""
    if "input_ids" not in table:
        return table
    rows = renumbered(table["input_ids"], new_ids)
    whole = (rows >= 0).reshape(len(rows), -1).all(1)
    if not whole.any():
        raise InputError("every sample has tokens that are gone", "let prune-vocab keep those of this data too")
    return {name: (rows if name == "input_ids" else values)[whole] for name, values in table.items()}


def _read_ids(path: Path) -> object:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a{' NumPy' if path.suffix == '.npy' else ' JSON'} file of token ids") from None


def _ids(values: object, what: str) -> list[npt.NDArray[np.int64]]:
    """Rows of ids from an array of one or two dimensions, a list, or a list of lists."""
    if isinstance(values, Iterable) and not isinstance(values, np.ndarray | str | Mapping):
        values = list(values)
        nested = bool(values) and all(isinstance(row, Sequence | np.ndarray) for row in values)
        rows = values if nested else [values]
    else:
        rows = [values]
    try:
        arrays = [array for row in rows for array in np.atleast_2d(np.asarray(row))]
    except ValueError:
        arrays = []
    if not arrays or any(a.ndim != 1 or a.dtype.kind not in "iu" for a in arrays):
        raise InputError(f"{what} must be integers: one list of token ids, or several")
    return [array.astype(np.int64) for array in arrays]


def _batches_of_rows(rows: Sequence[npt.NDArray[np.int64]]) -> list[Batch]:
    by_length: dict[int, list[npt.NDArray[np.int64]]] = {}
    for row in rows:
        by_length.setdefault(row.size, []).append(row)
    found: list[Batch] = []
    for length, group in sorted(by_length.items()):
        step = max(1, BATCH_TOKENS // max(1, length))
        found += [{"input_ids": np.stack(group[i : i + step])} for i in range(0, len(group), step)]
    return found


def _table_batches(table: Batch) -> list[Batch]:
    sizes = {values.shape[0] if values.ndim else 0 for values in table.values()}
    if len(sizes) != 1 or not (count := sizes.pop()):
        raise InputError("the inputs to calibrate on must be arrays of the same number of samples")
    per_sample = max(int(np.prod(values.shape[1:2])) for values in table.values())
    step = max(1, BATCH_TOKENS // max(1, per_sample))
    return [{name: values[i : i + step] for name, values in table.items()} for i in range(0, count, step)]


def _is_causal(graph: Graph) -> bool:
    """Whether text runs through `graph` as a stream: not where every attention sees both sides."""
    attentions = graph.find(nn.Attention)
    return not attentions or any(op.causal for op in attentions)


def _vocabulary(graph: Graph) -> int:
    """How many token ids the embedding of `input_ids` knows."""
    values = [value for value in graph.inputs if value.name == "input_ids"]
    while values:
        for user in values.pop().uses:
            if isinstance(user, nn.Embedding) and isinstance(size := user.weight.type.shape[0], int):
                return size
            if isinstance(user, prim.Cast | prim.Reshape):
                values += user.results
    return 1 << 31


def _longest(module: Module) -> int:
    """The longest text that the model was made for."""
    config = module.metadata.get("config") or {}
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    return longest if isinstance(longest, int) and longest > 1 else 1 << 31
