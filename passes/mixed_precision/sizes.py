"""How large do the files become? Asked of the backends, which add padding, tables, tokenizers and what else they need.

What lies between this pass and the files (kv-cache, say) changes sizes too: the exact passes that follow in the
pipeline are run on a copy whose weights have the types in question, and no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from irlab.encodings import Encoding
from irlab.errors import UsageError
from irlab.ir import Module
from irlab.passes.quantize.selection import encode_weights
from irlab.passmgr import Context, Pass, PassManager, stored_bytes
from irlab.target import Backend
from irlab.types import TensorType


class Sizes:
    """The bytes of weights and of whole files, for all targets of `ctx`; without a target, of the weights alone."""

    def __init__(self, module: Module, ctx: Context, following: Sequence[Pass]) -> None:
        self._module, self._ctx = module, ctx
        self._following = following
        self.backends: list[Backend] = ctx.backends()

    def of_weight(self, type: TensorType) -> int:
        """The bytes of a weight of this type; of several targets, where it takes most."""
        sizes = [backend.weight_bytes(type, self._module) for backend in self.backends]
        own = type.size_bytes
        assert isinstance(own, int), "sizes of weights are known"
        return max(sizes, default=own)

    def of_files(self, encodings: Mapping[str, Encoding]) -> dict[str, int]:
        """The bytes of what each target writes if these weights are encoded so. Raises UsageError for a target that
        cannot tell."""
        module = self._module.clone()
        encode_weights(module.graph, encodings)
        ctx = Context(self._ctx.targets, device=self._ctx.device, is_plan=True, outputs=self._ctx.outputs)
        PassManager(self._following, ctx).run(module)
        if not self.backends:
            return {"weights": stored_bytes(module)}
        found: dict[str, int] = {}
        for backend in self.backends:
            size = backend.exact_bytes(backend.legalise(module.clone(), ctx))
            if size is None:
                raise UsageError(
                    f"mixed-precision: the size of {backend.name} files is known once they are written",
                    "give bpw= or max-kl= in place of size=",
                )
            found[str(backend)] = size
        return found


def following(step: Pass, passes: Sequence[Pass]) -> list[Pass]:
    """The passes after `step` that change no numbers, up to the first that does."""
    places = [i for i, other in enumerate(passes) if other is step]
    rest = passes[places[0] + 1 :] if places else ()
    return list(takewhile(lambda other: other.exactness != "lossy", rest))
