"""The tables of kernels from ONNX Runtime's document: read rightly, and those of the version that is installed."""

from __future__ import annotations

from collections import defaultdict

from irlab.backends.onnx.kernels import Kernels, data_operand, half_by_casts, kernels, refusal
from irlab.backends.onnx.providers import since_version
from tools.kernel_registry import installed, lines, read

DOCUMENT = """\
## Operators implemented by CUDAExecutionProvider

| Op Name | Parameters | OpSet Version | Types Supported |
|---------|------------|---------------|-----------------|
|**Operator Domain:** *ai.onnx*||||
|Split|*in* input:**T**<br> *in* split:**T**<br> *out* outputs...:**T**<br><br>or<br><br>*in* input:**T**<br> *in* \
split:**tensor(int64)**<br> *out* outputs:**T**|18+|**T** = tensor(float), tensor(string)|
|||13|**T** = tensor(float)|
|||[2, 12]|**T** = tensor(double), tensor(float)|
|Cast|*in* input:**T1**<br> *out* output:**T2**|13+|**T1** = tensor(float)<br/> **T2** = tensor(float16), tensor(int4)|
|StringNormalizer|*in* X:**T**<br> *out* Y:**T**|10+|**T** = tensor(string)|
| |
| |
|**Operator Domain:** *com.microsoft*||||
|GatherBlockQuantized|*in* data:**T1**<br> *in* indices:**Tind**<br> *in* scales:**T2**<br> *out* output:**T2**|1+|\
**T1** = tensor(uint4), tensor(uint8)<br/> **T2** = tensor(float)<br/> **Tind** = tensor(int32), tensor(int64)|
|**Operator Domain:** *com.microsoft.nchwc*||||
|Conv|*in* X:**T**<br> *out* Y:**T**|1+|**T** = tensor(float)|
"""


def test_the_document_is_read() -> None:
    assert list(lines(read(DOCUMENT)["cuda"])) == [
        "Cast 13: f32 -> i4 f16",
        "ms:GatherBlockQuantized 1: u4 u8, i32 i64, f32",
        "Split 13 18: f32, i64",
        "Split 2-12: D f32",
    ]


NEWER = {
    "BitShift": {"u16"},
    "LayerNormalization": {"bf16"},
    "Pad": {"bf16"},
    "SimplifiedLayerNormalization": {"bf16"},
    "Where": {"i8", "u32"},
    "ms:GatedRMSNorm": {"bf16"},
    "ms:LinearAttentionGate": {"bf16"},
    "ms:QMoE": {"bf16"},
    "ms:SkipLayerNormalization": {"bf16"},
    "ms:SkipSimplifiedLayerNormalization": {"bf16"},
}
"""What ONNX Runtime 1.32 computes on the CPU in opset 21 or 23, and the document's version does not, of the ops that
the document knows: another version of either changes it."""


def test_the_document_is_that_of_the_installed_version() -> None:
    """Its table of the CPU's kernels says what the registry says: no more, and but for `NEWER` no less."""
    document = kernels("cpu")
    registry = {op: tuple(map(half_by_casts, found)) for op, found in installed().items()}
    assert set(document) <= set(registry)
    newer: dict[str, set[str]] = defaultdict(set)
    for opset in (21, 23):
        known, found = held(document, opset), held(registry, opset)
        for op in document:
            said, types = known.get(op, set()), found.get(op, set())
            assert said <= types, f"the document says that the CPU takes {op} in {said - types} in opset {opset}"
            if types - said:
                newer[op] |= types - said
    assert dict(newer) == NEWER, "python tools/kernel_registry.py writes the tables anew"


def held(table: Kernels, opset: int) -> dict[str, set[str]]:
    """The types in which `table` has a kernel for an op of `opset`, by op."""
    found = {}
    for op in table:
        domain, _, name = op.rpartition(":")
        since = since_version(name, domain, opset)
        at = data_operand(name) or 0
        every = {t for kernel in table[op] for t in kernel.operand(at) or {"f32"}}
        if since:
            found[op] = {t for t in every if not refusal(table, name, domain and "com.microsoft", since, {at: t})}
    return found
