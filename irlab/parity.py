"""The parity gate: what was written, run in its real runtime, against the interpreter on the same prompts.

Float files must choose the same greedy tokens and stay within a logit tolerance, or what rounding to half precision
explains in this model. Files with encoded weights must stay
under a bound on the KL divergence, and agree on the most likely token wherever the interpreter's lead over the second
exceeds twice the largest logit difference: their runtimes round activations to 8 bits, so tokens need not be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckError
from .ir import Module
from .target import Backend, Runtime

if TYPE_CHECKING:
    import numpy as np

PROMPTS = (
    "Once upon a time there was a little girl who",
    "The answer to the question is that the",
    "One day, a big dog saw a red ball and",
)
GREEDY_TOKENS = 16
MAX_PARAMETERS = 1_000_000_000
"""Above this many weights the gate is off by default: it holds the model in memory."""
TYPICAL_LOGIT = 10.0
"""Logit tolerances hold for logits up to this size, and grow in proportion beyond: a runtime that rounds activations
to half precision errs in proportion to what it sums."""
ROUNDING_MARGIN = 2.0
"""So many times the difference that half precision makes in the interpreter itself is allowed (rounded_inputs.py)."""
ENCODED_KL_BOUND = 0.05
"""Mean KL divergence allowed to 8-bit activations; the weights themselves are the same numbers on both sides."""


@dataclass
class Parity:
    """What the gate measured. `skipped` is the reason if it did not run."""

    runtime: str = ""
    max_abs_logit_diff: float = 0.0
    kl: float = 0.0
    argmax_agreement: float = 1.0
    greedy_equal: bool = True
    continuation: str = ""
    skipped: str = ""
    failure: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--report`; what was not measured is None."""
        measured = ("max_abs_logit_diff", "kl", "argmax_agreement", "greedy_equal")
        return {k: None if self.skipped and k in measured else v for k, v in vars(self).items()}

    def __str__(self) -> str:
        if self.skipped:
            return f"parity not checked: {self.skipped}"
        return (
            f"parity in {self.runtime}: largest logit difference {self.max_abs_logit_diff:.2g}, "
            f"KL {self.kl:.2g}, greedy tokens {'equal' if self.greedy_equal else 'differ'}"
        )


def check_parity(
    backend: Backend, module: Module, out: Path, *, seed: int = 0, insist: bool = False, device: str = "cpu"
) -> Parity:
    """Run `out`, which `backend` wrote from the legalised `module`; the interpreter runs on `device`.

    `insist`: however large the model is.
    """
    runtime = backend.runtime_for(module)
    reason = _reason_to_skip(runtime, module, insist)
    if runtime is None or reason:
        return Parity(skipped=reason)
    from .rounded_inputs import rounding_error

    prompts = prompt_tokens(module, seed)
    result = _compare(runtime, module, out, prompts, device)
    tolerance = backend.float_tolerance(module)
    if tolerance is not None:
        tolerance *= max(1.0, result.details["largest_logit"] / TYPICAL_LOGIT)
        if result.max_abs_logit_diff > tolerance:
            rounding = result.details["rounding"] = rounding_error(module, prompts, device)
            tolerance = max(tolerance, ROUNDING_MARGIN * rounding)
        if result.max_abs_logit_diff > tolerance:
            result.failure = f"logits differ by {result.max_abs_logit_diff:.3g}, more than {tolerance:g}"
        elif not result.greedy_equal and not result.details["tie"]:
            result.failure = "greedy tokens differ"
    elif result.kl > ENCODED_KL_BOUND:
        result.failure = f"KL divergence {result.kl:.3g} is above {ENCODED_KL_BOUND:g}"
    elif result.details["wrong_leads"]:
        result.failure = f"{result.details['wrong_leads']} clear leads of the interpreter are not kept"
    return result


def require_parity(result: Parity, out: Path) -> None:
    """Raise CheckError if the gate failed."""
    if result.failure:
        raise CheckError(f"{out} is not what the IR computes: {result.failure} in {result.runtime}")


def _reason_to_skip(runtime: Runtime | None, module: Module, insist: bool) -> str:
    if runtime is None:
        return "this target has no runtime to check with"
    if "input_ids" not in {value.name for value in module.graph.inputs} or "logits" not in module.graph.outputs:
        return "the graph does not map input_ids to logits"
    sizes = [symbol.type.size for symbol in module.weights.values()]
    if not insist and sum(size for size in sizes if isinstance(size, int)) > MAX_PARAMETERS:
        return "the model is large; ask for it with --parity"
    return runtime.unavailable()


def prompt_tokens(module: Module, seed: int) -> list[list[int]]:
    """A few prompts as token ids: real text where the module has a tokenizer, else random ids."""
    import random

    vocabulary = module.graph.outputs["logits"].type.shape[-1]
    assert isinstance(vocabulary, int)
    tokenizer = load_tokenizer(module)
    if tokenizer is not None:
        encoded = [tokenizer.encode(text).ids for text in PROMPTS]
        if all(ids and max(ids) < vocabulary for ids in encoded):
            return encoded
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in (9, 12, 17)]


def load_tokenizer(module: Module) -> Any:
    """The `tokenizers.Tokenizer` of the module, or None."""
    file = Path(module.metadata.get("tokenizer") or "") / "tokenizer.json"
    if not module.metadata.get("tokenizer") or not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _compare(runtime: Runtime, module: Module, out: Path, prompts: Sequence[Sequence[int]], device: str) -> Parity:
    import numpy as np

    from .decoder import greedy, logits

    result = Parity(runtime=runtime.name)
    divergences: list[float] = []
    agree: list[bool] = []
    wrong, largest_logit = 0, 0.0
    theirs = runtime.logits(out, prompts)
    for prompt, measured in zip(prompts, theirs):
        expected = logits(module, prompt, device=device).astype(np.float64)
        measured = measured.astype(np.float64)[:, : expected.shape[1]]
        largest = float(np.abs(expected - measured).max())
        largest_logit = max(largest_logit, float(np.abs(expected).max()))
        result.max_abs_logit_diff = max(result.max_abs_logit_diff, largest)
        divergences.extend(kl_divergence(expected, measured))
        same = expected.argmax(-1) == measured.argmax(-1)
        agree.extend(same.tolist())
        wrong += int((~same & (lead(expected) > 2 * largest)).sum())
    result.kl, result.argmax_agreement = float(np.mean(divergences)), float(np.mean(agree))
    ours = greedy(module, prompts[0], GREEDY_TOKENS, device=device)
    chosen = runtime.greedy(out, prompts[0], GREEDY_TOKENS)
    # A runtime may stop at an end-of-text token; what it chose up to there counts.
    result.greedy_equal = chosen == ours[: len(chosen)] and bool(chosen)
    result.details = {
        "wrong_leads": wrong,
        "largest_logit": largest_logit,
        "tie": False,
        "greedy": chosen,
        "greedy_expected": ours,
    }
    if not result.greedy_equal:
        result.details["tie"] = _is_tie(module, prompts[0], ours, chosen, result.max_abs_logit_diff, device)
    tokenizer = load_tokenizer(module)
    if tokenizer is not None:
        result.continuation = tokenizer.decode([*prompts[0], *chosen])
    return result


def _is_tie(
    module: Module, prompt: Sequence[int], ours: list[int], chosen: list[int], difference: float, device: str
) -> bool:
    """Whether the first token that differs is one on which the interpreter itself hardly has a preference."""
    from .decoder import logits

    at = next((i for i, (a, b) in enumerate(zip(ours, chosen)) if a != b), len(chosen))
    last = logits(module, [*prompt, *ours[:at]], device=device)[-1:]
    return bool(lead(last)[0] <= 2 * difference)


def lead(logits: np.ndarray) -> np.ndarray:
    """How far the most likely token leads the second: logits f[tokens, vocab] -> f[tokens]."""
    import numpy as np

    top = np.partition(logits, -2, axis=-1)
    lead: np.ndarray = top[:, -1] - top[:, -2]
    return lead


def kl_divergence(expected: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """KL(softmax(expected) || softmax(measured)) in nats for each row: f64[tokens, vocab] -> f64[tokens]."""
    import numpy as np

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))  # type: ignore[no-any-return]

    p, q = log_softmax(expected), log_softmax(measured)
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return divergence
