"""What `--plan` says of a module for GGUF: architecture, encodings, shapes; no weight is read but rotary tables."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from irlab.backends.gguf.anatomy import dissect
from irlab.backends.gguf.encoding import exact_type
from irlab.backends.gguf.legalise import architecture_of
from irlab.backends.gguf.names import named_weights
from irlab.errors import IrlabError
from irlab.ir import Module
from irlab.target import PlanRow
from irlab.types import DType

if TYPE_CHECKING:
    from irlab.backends.gguf import GGUF


def plan(module: Module, options: GGUF) -> list[PlanRow]:
    """A row for the architecture, one for each kind of stored weight, one for the types that will be written."""
    try:
        decoder = dissect(module)
        architecture, _ = architecture_of(decoder, module)
    except IrlabError as error:
        return [PlanRow("the graph", "none", str(error))]
    rows = [PlanRow(f"{len(decoder.layers)} layers", "native", f"architecture '{architecture.name}'")]
    counts = Counter((value.type.element, value.type.shape[-1]) for _, value in named_weights(decoder))
    for (element, columns), count in counts.items():
        what = f"{count} weights of {element}, {columns} columns"
        if isinstance(element, DType):
            rows.append(PlanRow(what, "native", f"stored as {options.type}"))
        elif (kind := exact_type(element, int(columns))) is not None:  # type: ignore[arg-type]
            rows.append(PlanRow(what, "native", f"the same codes as {kind}"))
        else:
            rows.append(PlanRow(what, "none", "use symmetric int4 or int8 with f16 scales, or gguf{type=...}"))
    return rows
