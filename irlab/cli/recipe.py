"""How do recipes meet the command line? `--recipe` fills in what was not given, `--save-recipe` keeps what was run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import InputError, UsageError
from .options import Output, build_parser

if TYPE_CHECKING:
    from ..ir import Module
    from ..passmgr import Pass
    from ..recipes import RunRecipe
    from ..target import Backend


def with_recipe(args: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
    """`args`, which `words` were parsed into, with what `--recipe` says where they say nothing."""
    from ..recipes import read_recipe

    recipe = read_recipe(args.recipe)
    if args.passes:
        raise UsageError("--recipe and --passes both say what to run", "leave one of them out")
    if recipe.load and not args.load:
        files = shlex.join(recipe.load)
        raise UsageError(
            f"{args.recipe} was made with --load {files}", "give it too: recipes run no code by themselves"
        )
    recipe.require_calibration()
    parser = build_parser()
    parser.set_defaults(**{name: value for name, value in _defaults(recipe).items() if value})
    new = parser.parse_args(list(words))
    new.passes = ",".join(map(str, recipe.passes()))
    new.target = [*new.target, *recipe.targets]
    if not new.outputs and not new.ir_output:
        new.outputs = [_output(recipe, each.target, each.output) for each in recipe.emit] or None
    return new


def _defaults(recipe: RunRecipe) -> dict[str, object]:
    """What the recipe says of options that take one value."""
    data = recipe.calibration
    return {
        "input": recipe.resolve(recipe.model.input) if recipe.model.input else None,
        "revision": recipe.model.revision,
        "fingerprint": recipe.model.fingerprint,
        "seed": recipe.seed,
        "device": recipe.device,
        "calibration": recipe.resolve(data.text) if data.text else None,
        "calibration_tokens": data.tokens,
        "calibration_length": data.length,
    }


def _output(recipe: RunRecipe, target: str, output: str) -> Output:
    if not target or not output:
        raise InputError(f"{recipe.path}: each [[emit]] has a target and an output")
    return Output(target, recipe.path.parent / output)


def require_model(args: argparse.Namespace, module: Module) -> None:
    """Raise InputError where `module` is not the one that the recipe names."""
    from ..model_fingerprint import model_fingerprint

    if args.fingerprint and (found := model_fingerprint(module)) != args.fingerprint:
        raise InputError(
            f"{args.input} is not the model that {args.recipe} was made for: its fingerprint is {found}",
            "to run the recipe on another model, remove the fingerprint from it",
        )


def save_recipe(
    args: argparse.Namespace, passes: Sequence[Pass], backends: Sequence[Backend], outputs: Sequence[Output], model: str
) -> None:
    """Write what was run, with every option, to `--save-recipe`. `model` is the fingerprint of what was lifted."""
    from ..recipes import Calibration, Model, RunRecipe, file_sha256, relative, resolved, write_recipe
    from ..recipes import Output as Written

    path: Path = args.save_recipe
    pipeline, layers = resolved(passes)
    calibration = Calibration()
    if args.calibration:
        sha256 = file_sha256(Path(args.calibration)) if Path(args.calibration).exists() else ""
        source = relative(args.calibration, path)
        calibration = Calibration(source, sha256, args.calibration_tokens, args.calibration_length)
    written = [
        Written(f"{backend.name}{backend.option_text(resolved=True)}", relative(str(output.path), path))
        for backend, output in zip(backends, outputs)
        if output.path is not None
    ]
    recipe = RunRecipe(
        pipeline=pipeline,
        seed=args.seed,
        device=args.device,
        irlab=__version__,
        targets=tuple(args.target),
        load=tuple(relative(file, path) for file in args.load),
        model=Model("" if args.input == "-" else relative(args.input, path), args.revision or "", model),
        layers=layers,
        calibration=calibration,
        emit=tuple(written),
    )
    write_recipe(recipe, path)
