"""What makes a run repeatable, in a file? A recipe: TOML with the pipeline, options per layer, seed, data and outputs.

    pipeline = "fuse,quantize{scheme=int4 group=32},kv-cache"
    seed = 0

    [model]
    input = "models/llama"
    fingerprint = "sha256:..."                    # refused where the model is another one

    [layers."model.layers.{0..3}.*"]
    quantize.scheme = "int8"                      # as in overlay.py: the last table that matches wins

    [calibration]
    text = "calibration.txt"
    sha256 = "..."                                # refused where the text is another one
    tokens = 4096

    [[emit]]
    target = "gguf{type=auto}"
    output = "llama.gguf"

Paths are relative to the recipe. Only `pipeline` is needed.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from .errors import InputError, UsageError
from .options import did_you_mean, plain_text
from .overlay import LayerRow
from .passmgr import Pass, Repeat
from .schedule import build_pipeline, flat

NAMES: Final = ("demo", "self")
"""The built-in model, and calibration on what the model writes: no paths, whatever files there are."""

MAX_BYTES: Final = 4 << 20
"""A recipe is written by people."""


@dataclass(frozen=True)
class Model:
    """The model that a recipe was made for. `fingerprint` is that of fingerprint.py."""

    input: str = ""
    revision: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Calibration:
    """The calibration data: a text file by path and hash, or "self" for what the model itself writes."""

    text: str = ""
    sha256: str = ""
    tokens: int = 0
    length: int = 0


@dataclass(frozen=True)
class Output:
    """One output: a target with its options, and where it goes."""

    target: str = ""
    output: str = ""


LayerOptions = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Option values by layer pattern, pass and name: texts, numbers, true or false, lists of these."""


@dataclass(frozen=True)
class RunRecipe:
    """A recipe as read from `path`. `load` names Python files that it needs, which are never loaded unasked."""

    pipeline: str = ""
    seed: int = 0
    device: str = "cpu"
    irlab: str = ""
    targets: tuple[str, ...] = ()
    load: tuple[str, ...] = ()
    model: Model = Model()
    layers: LayerOptions = field(default_factory=dict)
    calibration: Calibration = Calibration()
    emit: tuple[Output, ...] = ()
    path: Path = Path()

    def passes(self) -> list[Pass]:
        """The passes, with those that they require and with the options per layer. Raises UsageError, ParseError."""
        passes = build_pipeline(self.pipeline)
        rows: dict[str, list[LayerRow]] = {}
        classes = {step.name: type(step) for step in flat(passes)}
        for pattern, options in self.layers.items():
            for name, given in options.items():
                if name not in classes:
                    where = f"{self.path}: options of '{name}' are given for layers"
                    raise UsageError(f"{where}, and the pipeline has no such pass", did_you_mean(name, classes))
                texts = {option: plain_text(value) for option, value in given.items()}
                rows.setdefault(name, []).append(classes[name].layer_row(pattern, texts))
        return [_with_rows(step, rows) for step in passes]

    def resolve(self, text: str) -> str:
        """A path in the recipe as one to open; hub ids, "demo" and the like, which are no paths here, as they are."""
        beside = self.path.parent / text
        return str(beside) if text not in NAMES and beside.exists() else text

    def require_calibration(self) -> None:
        """Raise InputError where the calibration text is not the one that the recipe was made with."""
        data = self.calibration
        if not data.sha256:
            return
        found = file_sha256(Path(self.resolve(data.text)))
        if found != data.sha256.lower():
            raise InputError(
                f"{self.path}: the calibration text {data.text} is not the one that the recipe was made with",
                f"its sha256 is {found}; put it into the recipe if the change is meant",
            )


def _with_rows(step: Pass, rows: Mapping[str, Sequence[LayerRow]]) -> Pass:
    if isinstance(step, Repeat):
        made = replace(step)
        object.__setattr__(made, "body", tuple(_with_rows(inner, rows) for inner in step.body))
        return made
    return step.with_layers(rows[step.name]) if step.name in rows else step


def file_sha256(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal. Raises InputError."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


# Reading


def read_recipe(path: Path) -> RunRecipe:
    """The recipe in a TOML file. Raises InputError naming the key that is wrong; the pipeline is not looked at yet."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large for a recipe")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}", "a recipe is a TOML file; --save-recipe writes one") from None
    values = _read_table(RunRecipe, table, path, "")
    if "pipeline" not in table:
        raise InputError(f"{path} has no pipeline", 'a recipe begins with: pipeline = "fuse,quantize{scheme=int4}"')
    return RunRecipe(**values, path=path)


def _read_table(cls: type[Any], table: object, path: Path, where: str) -> dict[str, Any]:
    """The fields of dataclass `cls` from a TOML table."""
    if not isinstance(table, dict):
        raise InputError(f"{path}: {where} is not a table", f"write [{where}]")
    defaults = {f.name: f.default for f in fields(cls) if f.name != "path"}
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{where}.{key}" if where else key
        if key not in defaults:
            raise InputError(f"{path}: unknown key '{name}'", did_you_mean(key, defaults))
        found[key] = _read_value(key, defaults[key], value, path, name)
    return found


def _read_value(key: str, default: Any, value: Any, path: Path, name: str) -> Any:
    if key == "layers":
        return _read_layers(value, path)
    if key == "emit":
        if not isinstance(value, list):
            raise InputError(f"{path}: emit is a list of tables", "write [[emit]]")
        return tuple(Output(**_read_table(Output, table, path, "emit")) for table in value)
    if key in ("model", "calibration"):
        return type(default)(**_read_table(type(default), value, path, key))
    if isinstance(default, tuple):
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise InputError(f"{path}: {name} takes a list of texts")
        return tuple(value)
    if type(value) is not type(default):
        kind = {str: "a text in quotes", int: "an integer"}[type(default)]
        raise InputError(f"{path}: {name} takes {kind}, not {value!r}")
    return value


def _read_layers(table: object, path: Path) -> LayerOptions:
    shown = '[layers."model.layers.{0..3}.*"] and below it: quantize.scheme = "int8"'
    layers: dict[str, dict[str, dict[str, Any]]] = {}
    for pattern, passes in _items(table, path, "layers", shown):
        for name, options in _items(passes, path, f'layers."{pattern}"', shown):
            for option, value in _items(options, path, f'layers."{pattern}".{name}', shown):
                if isinstance(value, dict):
                    raise InputError(f"{path}: {name}.{option} of the layers '{pattern}' is a table", f"write {shown}")
                layers.setdefault(pattern, {}).setdefault(name, {})[option] = value
    return layers


def _items(table: object, path: Path, where: str, shown: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(table, dict):
        raise InputError(f"{path}: {where} is not a table", f"write {shown}")
    return table.items()


# Writing


def write_recipe(recipe: RunRecipe, path: Path) -> None:
    """Write `recipe` to `path`, whole or not at all."""
    import tomlkit

    from .outputs import whole_output

    document = tomlkit.document()
    for key in ("irlab", "pipeline", "seed", "device", "targets", "load"):
        if (value := getattr(recipe, key)) or key in ("pipeline", "seed"):
            document[key] = _toml_value(value)
    for key in ("model", "calibration"):
        if known := {k: v for k, v in vars(getattr(recipe, key)).items() if v}:
            document[key] = _toml_value(known)
    if recipe.layers:
        document["layers"] = {pattern: dict(options) for pattern, options in recipe.layers.items()}
    if recipe.emit:
        document["emit"] = [_toml_value(vars(output)) for output in recipe.emit]
    with whole_output(path, directory=False, force=True) as temporary:
        temporary.write_text(tomlkit.dumps(document), encoding="utf-8")


def resolved(passes: Sequence[Pass]) -> tuple[str, LayerOptions]:
    """Pipeline text with every option of `passes` written out, and options per layer where a table can say them."""
    special = [step for step in passes if step.layers]
    names = [step.name for step in flat(passes)]
    if len(special) != 1 or names.count(special[0].name) > 1:
        return ",".join(step.resolved_text() for step in passes), {}
    (only,) = special
    layers: dict[str, dict[str, dict[str, Any]]] = {}
    for row in only.layers.rows:
        values = {key: _toml_value(value) for key, value in row.values.items()}
        layers.setdefault(row.pattern.text, {}).setdefault(only.name, {}).update(values)
    text = ",".join(
        step.name + step.option_text(resolved=True) if step is only else step.resolved_text() for step in passes
    )
    return text, layers


def _toml_value(value: object) -> object:
    import tomlkit

    if isinstance(value, str) and '"' in value and "'" not in value and value.isprintable():
        return tomlkit.string(value, literal=True)  # readable: no backslashes before the quotes of pipeline text
    if isinstance(value, Mapping):
        return {key: _toml_value(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_toml_value(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else plain_text(value)


def relative(path: str, recipe: Path) -> str:
    """`path` as the recipe file names it, if it is one."""
    if path in NAMES or not Path(path).exists():
        return path
    try:
        return Path(os.path.relpath(path, recipe.parent)).as_posix()
    except ValueError:  # another drive
        return Path(path).as_posix()
