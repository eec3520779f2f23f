"""What remains of a tokenizer when some tokens go? The same pieces of any text that needs none of those that went.

A merge of byte-pair encoding stays if its parts and its result do, and with a token stay the parts of every merge that
makes it, so that it is still made, step by step; single characters and bytes stay, so that any text can be written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from irlab.errors import InputError

Json = dict[str, Any]

_COPIED: Final = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")
_ID_FIELDS: Final = ("_token_id", "_token_ids")
"""How fields of configurations end that hold token ids."""

_MODELS: Final = ("BPE", "WordPiece", "Unigram")


def read_tokenizer(directory: Path, owner: str) -> Json:
    """tokenizer.json of `directory`. Raises InputError where there is none, or one of another kind."""
    try:
        tokenizer: Json = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{owner}: {directory} has no tokenizer.json that could follow", "the vocabulary stays as it is without one"
        ) from None
    kind = tokenizer.get("model", {}).get("type")
    if kind not in _MODELS:
        raise InputError(f"{owner}: a tokenizer of type {kind} cannot be cut", f"known: {', '.join(_MODELS)}")
    return tokenizer


def closure(tokenizer: Json, wanted: Iterable[int]) -> list[int]:
    """`wanted` ids with all that they need, in ascending order: special tokens, single characters, bytes, and the parts
    of merges."""
    ids = token_ids(tokenizer)
    kept = set(wanted)
    kept |= {token["id"] for token in tokenizer.get("added_tokens", ())}
    kept |= {i for token, i in ids.items() if _is_basic(token)}
    model = tokenizer["model"]
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in ids:
        kept.add(ids[unknown])
    if isinstance(model.get("unk_id"), int):
        kept.add(model["unk_id"])
    makers: dict[int, list[int]] = {}
    for first, second in map(_pair, model.get("merges", ())):
        made = ids.get(_joined(model, first, second))
        if made is not None:
            makers.setdefault(made, []).extend(ids[part] for part in (first, second) if part in ids)
    stack = list(kept)
    while stack:
        for part in makers.get(stack.pop(), ()):
            if part not in kept:
                kept.add(part)
                stack.append(part)
    return sorted(kept)


def token_ids(tokenizer: Json) -> dict[str, int]:
    """The ids of the tokens of the model, without those added."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {piece: i for i, (piece, _) in enumerate(vocabulary)}


def _is_basic(token: str) -> bool:
    """Whether a token is one character (perhaps a continuing one), or a byte such as <0x0A>."""
    return len(token.removeprefix("##")) == 1 or (len(token) == 6 and token.startswith("<0x") and token.endswith(">"))


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _joined(model: Json, first: str, second: str) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return first + (second.removeprefix(prefix) if prefix else second)


def renumbered(tokenizer: Json, new_id: Mapping[int, int]) -> Json:
    """`tokenizer` with only the tokens of `new_id`, under their new ids."""
    made: Json = json.loads(json.dumps(tokenizer))
    model = made["model"]
    ids = token_ids(tokenizer)
    stays = {token for token, i in ids.items() if i in new_id}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: new_id[i] for token, i in ids.items() if token in stays}
    else:
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new_id]
    if "merges" in model:
        parts = ((merge, _pair(merge)) for merge in model["merges"])
        model["merges"] = [m for m, (a, b) in parts if {a, b, _joined(model, a, b)} <= stays]
    if isinstance(model.get("unk_id"), int):
        model["unk_id"] = new_id[model["unk_id"]]
    for token in made.get("added_tokens", ()):
        token["id"] = new_id[token["id"]]
    _renumber_post_processor(made.get("post_processor"), new_id)
    return made


def _renumber_post_processor(part: Any, new_id: Mapping[int, int]) -> None:
    """Templates name ids in lists, BERT's and RoBERTa's as [token, id]."""
    if not isinstance(part, dict):
        return
    for each in part.get("processors", ()):
        _renumber_post_processor(each, new_id)
    for special in (part.get("special_tokens") or {}).values():
        special["ids"] = [new_id[i] for i in special["ids"]]
    for name in ("sep", "cls"):
        if isinstance(part.get(name), list):
            part[name] = [part[name][0], new_id[part[name][1]]]


def renumber_config(config: Json, new_id: Mapping[int, int], size: int) -> Json:
    """A configuration with the new ids of tokens; ids of tokens that went are left out."""
    made = dict(config)
    for name, value in config.items():
        if name.endswith(_ID_FIELDS):
            several = value if isinstance(value, list) else [value]
            known = [new_id[i] for i in several if isinstance(i, int) and i in new_id]
            made[name] = known if isinstance(value, list) else (known[0] if known else None)
    if "vocab_size" in made:
        made["vocab_size"] = size
    return made


def write_tokenizer(source: Path, out: Path, tokenizer: Json, new_id: Mapping[int, int]) -> None:
    """The files of `source` that name tokens, as they are for the new ids, in `out`, whole or not at all."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(partial / "tokenizer.json", renumbered(tokenizer, new_id))
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            _write(partial / name, renumber_config(json.loads((source / name).read_text("utf-8")), new_id, len(new_id)))
    if (source / "tokenizer_config.json").is_file():
        config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
        added = config.get("added_tokens_decoder")
        if isinstance(added, dict):
            config["added_tokens_decoder"] = {str(new_id[int(i)]): t for i, t in added.items() if int(i) in new_id}
        _write(partial / "tokenizer_config.json", config)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _write(file: Path, content: Json) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
