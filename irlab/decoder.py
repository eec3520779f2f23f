"""Graphs that are causal decoders: the inputs that can be filled in, and greedy generation from them.

A cached decoder reads input_ids i64[batch, seq], attention_mask i64[batch, past + seq], position_ids i64[batch, seq]
and past_key_values.N.key / .value [batch, kv_heads, past, head_dim], and gives logits and present.N.key / .value.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .errors import InputError
from .ir import Graph, Module
from .passmgr import Context

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .feeding import Feeder
    from .interp import Sizes

_PAST: Final = re.compile(r"past_key_values\.(\d+)\.(key|value)")


def cache_inputs(graph: Graph) -> dict[str, str]:
    """The cache inputs of a decoder graph, each with the output that feeds it in the next step."""
    outputs = graph.outputs
    names = [value.name or "" for value in graph.inputs]
    pairs = {name: name.replace("past_key_values", "present") for name in names if _PAST.fullmatch(name)}
    for name, output in pairs.items():
        if output not in outputs:
            raise InputError(f"input '{name}' has no output '{output}' to feed it")
    return pairs


def with_defaults(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` with what a decoder can do without: an empty cache, a mask that hides nothing, positions that count on.

    Other inputs that are missing stay missing.
    """
    given = dict(inputs)
    absent = [value for value in graph.inputs if value.name not in given]
    if not any(_PAST.fullmatch(v.name or "") or v.name in ("attention_mask", "position_ids") for v in absent):
        return given
    sizes = input_sizes(graph, given)
    for value in absent:
        if _PAST.fullmatch(value.name or ""):
            _empty_past(value.type.shape, sizes)
    import torch

    from .interp import torch_dtype

    for value in absent:
        dtype, name = torch_dtype(value.type.dtype), value.name or ""
        if not all(sizes.knows(size) for size in value.type.shape):
            continue
        shape = sizes.shape(value.type.shape)
        if _PAST.fullmatch(name):
            given[name] = torch.zeros(shape, dtype=dtype)
        elif name == "attention_mask":
            given[name] = torch.ones(shape, dtype=dtype)
        elif name == "position_ids":
            past = _past_length(graph, sizes)
            given[name] = torch.arange(past, past + shape[-1], dtype=dtype).expand(shape)
    return given


def input_sizes(graph: Graph, given: Mapping[str, Any]) -> Sizes:
    """The sizes that the inputs `given` tell."""
    import torch

    from .interp import Sizes

    sizes = Sizes()
    known = [v for v in graph.inputs if v.name in given]
    sizes.bind([(f"input '{v.name}'", v.type.shape, tuple(torch.as_tensor(given[v.name]).shape)) for v in known])  # type: ignore[index]
    return sizes


def _empty_past(shape: tuple[Any, ...], sizes: Sizes) -> None:
    """Bind what is unknown of a cache's length to 0."""
    if not sizes.knows(shape[2]):
        sizes.bind([("an empty cache", shape[2:3], (0,))])


def _past_length(graph: Graph, sizes: Sizes) -> int:
    """How many positions lie in the cache, 0 in a graph without one."""
    for value in graph.inputs:
        if _PAST.fullmatch(value.name or "") and sizes.knows(value.type.shape[2]):
            return sizes(value.type.shape[2])
    return 0


def decode(module: Module | Graph, ids: Sequence[int], *, device: str = "cpu") -> Generator[torch.Tensor, int, None]:
    """The logits f32[vocab] after `ids`, then after each token sent in (`greedy` sends the likeliest).

    A generator: `next(steps)` gives the logits after the prompt, `steps.send(token)` those after one token more. Uses
    the cache if the graph has one, else runs the whole sequence again.
    """
    import torch

    from .interp import Program

    graph = module.graph if isinstance(module, Module) else module
    if _has_fixed_prompts(graph):
        more: list[int] = []
        for found in _feeder(graph, device).steps(list(ids), more):
            more.append((yield torch.from_numpy(found[0, -1])))
    pairs = cache_inputs(graph)
    program = Program(graph, device=device, outputs=["logits", *pairs.values()], cache_bytes=2 << 30)
    tokens = list(ids)
    fresh, cache = tokens, dict[str, Any]()
    while True:
        inputs = with_defaults(graph, {"input_ids": torch.tensor([fresh]), **cache})
        with torch.no_grad():
            results = program(inputs)
        token = yield results["logits"][0, -1].float()
        tokens.append(token)
        cache = {name: results[output] for name, output in pairs.items()}
        fresh = [token] if pairs else tokens


def logits(module: Module | Graph, ids: Sequence[int], *, device: str = "cpu") -> np.ndarray:
    """The logits after each token of `ids`, by the interpreter: f32[tokens, vocab]."""
    import numpy as np
    import torch

    from .interp import evaluate

    graph = module.graph if isinstance(module, Module) else module
    if _has_fixed_prompts(graph):
        steps = _feeder(graph, device).steps(list(ids), [])
        return np.asarray(next(steps)[0])
    with torch.no_grad():
        results = evaluate(module, {"input_ids": torch.tensor([list(ids)])}, device=device, outputs=["logits"])
    return results["logits"][0].float().cpu().numpy()


def _has_fixed_prompts(graph: Graph) -> bool:
    return any(value.name == "input_ids" and isinstance(value.type.shape[-1], int) for value in graph.inputs)


def _feeder(graph: Graph, device: str) -> Feeder:
    """What feeds a graph of fixed sizes to the interpreter."""
    import torch

    from .feeding import Feeder
    from .interp import Program
    from .weights import numpy_dtype

    program = Program(graph, device=device, outputs=["logits", *cache_inputs(graph).values()])

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            results = program({name: torch.from_numpy(values) for name, values in feed.items()})
        return {name: value.cpu().numpy() for name, value in results.items()}

    inputs = {value.name or "": (value.type.shape, numpy_dtype(value.type.dtype)) for value in graph.inputs}
    return Feeder(inputs, run)


def greedy(module: Module | Graph, ids: Sequence[int], count: int, *, device: str = "cpu") -> list[int]:
    """`count` tokens after `ids`, each the likeliest by the interpreter (the first of equals)."""
    steps = decode(module, ids, device=device)
    chosen: list[int] = []
    logits = next(steps)
    while len(chosen) < count:
        chosen.append(int(logits.argmax()))
        if len(chosen) < count:
            logits = steps.send(chosen[-1])
    return chosen


def sample(module: Module, count: int, length: int, *, device: str = "cpu", seed: int = 0) -> np.ndarray:
    """Text that the model writes itself: i64[count, length] token ids, drawn by their probabilities from random first
    tokens (Liu et al. 2023, LLM-QAT). The same for the same `seed`."""
    import torch

    from .interp import Program
    from .schedule import build_pipeline

    if not cache_inputs(module.graph):
        # Without a cache every step would run the whole text again.
        module = module.clone()
        for step in build_pipeline("kv-cache"):
            step.run(module, Context(seed=seed))
    graph = module.graph
    pairs = cache_inputs(graph)
    vocabulary = graph.outputs["logits"].type.shape[-1] if "logits" in graph.outputs else None
    if not isinstance(vocabulary, int):
        raise InputError("the graph writes no text: it has no logits", "calibrate it on a text file")
    random = torch.Generator().manual_seed(seed)
    program = Program(graph, device=device, outputs=["logits", *pairs.values()], cache_bytes=2 << 30)
    tokens = [torch.randint(vocabulary, (count, 1), generator=random)]
    cache: dict[str, Any] = {}
    with torch.no_grad():
        while len(tokens) < length:
            results = program(with_defaults(graph, {"input_ids": tokens[-1], **cache}))
            cache = {name: results[output] for name, output in pairs.items()}
            likely = torch.softmax(results["logits"][:, -1].float().cpu(), -1)
            tokens.append(torch.multinomial(likely, 1, generator=random))
    return torch.cat(tokens, 1).numpy()
