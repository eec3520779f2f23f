"""Which ops do execution providers compute, in which element types? As their own documents and registries list them.

A line is `op,op ... versions: types`. A version is the first opset of a kernel: one without an end holds a node only if
it is the very version of the node's op, `21-22` holds both; `*` is any version (the provider looks at names only).
Types are those of the data that an op computes on (of the scales in GatherBlockQuantized); `*` is any. F f16 f32, D
f64, B bf16, I all integers, b bool, A all of these. `ms:` is the domain com.microsoft. Only ops that the backend can
write are listed.
"""

from __future__ import annotations

from typing import Final

CUDA: Final = """
ms:GroupQueryAttention 1: f16 B
ms:MatMulNBits,ms:RotaryEmbedding 1: F B
ms:GatherBlockQuantized 1: F B
ms:FusedMatMul 1: F D B
SimplifiedLayerNormalization 1: F D B
Attention 23 24: F B
RMSNormalization 23: F D B
RotaryEmbedding 23: F B
LayerNormalization 17: F D B
Gelu 20: F D B
Abs,Sign 13: F D B I
Add,Sub,Mul,Div 14: F D B I
And,Or,Xor 7: b
Not 1: b
ArgMax 13: F D
AveragePool,Conv 22: F D B
MaxPool 12: F D i8 u8
Cast 23 21-22: A
Ceil,Floor 13: F D
Concat,Expand,Gather,GatherElements,Slice 13: A
Cos,Sin 7: F D
CumSum 14: F D i32 i64 u32 u64
DequantizeLinear 21: i4 u4 i8 u8
Equal 13: b F D i32 i64 u32 u64
Erf,Exp,MatMul,Sigmoid,Softmax,Sqrt,Tanh 13: F D B
Greater,Less 13: F D i32 i64 u32 u64
GreaterOrEqual,LessOrEqual 16: F D i32 i64 u32 u64
Identity,If 19: A
IsNaN 20: F D B
Log,Reciprocal 13: F D
Max,Min,Mod 13: F D B i32 i64 u32 u64
Neg 13: F D B i8 i16 i32 i64
Pad 18: b F D
Pow 15: F D B i32 i64
QuantizeLinear 21: F
MatMulInteger 10: *
Range 11: f32 D i16 i32 i64
ReduceMax,ReduceMin 18: F D i32 i64
ReduceMean,ReduceProd 18: F D i32
ReduceSum 13: F D B i32 i64
Relu 14: F D B
Reshape,Shape,Squeeze,Transpose,Unsqueeze 23 21-22: A
Round 11: F D
ScatterElements,Split 18: A
TopK 11: F D i32 i64
Where 16: F D B i32 i64 u8
"""
"""microsoft/onnxruntime, docs/OperatorKernels.md at commit 001d12d2 (1.32 in development): CUDAExecutionProvider."""

DIRECTML: Final = """
ms:GroupQueryAttention,ms:MatMulNBits,ms:RotaryEmbedding,ms:FusedMatMul 1: F
ms:DynamicQuantizeMatMul 1: f32
SimplifiedLayerNormalization 1: F
LayerNormalization 17: F
Abs,Neg 13: F i8 i16 i32 i64
Add,Sub,Mul,Div 14: F I
And,Or,Xor 7: b
Not 1: b
ArgMax,Greater,Less,Max,Min,Sign 13: F I
AveragePool 19: F
BitShift 11: u8 u16 u32 u64
BitwiseAnd,BitwiseOr,BitwiseXor,BitwiseNot 18: I
Cast,Identity,Pad,Reshape,Shape,Squeeze,Transpose,Unsqueeze 21: b F D I
Ceil,Floor,Erf,Exp,Log,MatMul,Reciprocal,Sigmoid,Softmax,Sqrt,Tanh 13: F
Concat,Expand,Gather,GatherElements,Slice 13: b F D I
Conv 11: F
Cos,Sin 7: F
CumSum 14: F i32 i64 u32 u64
DequantizeLinear 21: i4 u4 i8 u8
Equal 19: F I
GreaterOrEqual,LessOrEqual 16: F I
If 19: A
IsNaN 20: F
MaxPool 12: F i8 u8
Mod 13: F i8 i16 i32 u8 u16 u32
Pow 15: F i32
QuantizeLinear 21: F
DynamicQuantizeLinear 11: f32
MatMulInteger 10: *
ms:MatMulIntegerToFloat 1: *
Range 11: f32 i16 i32 i64
ReduceMax,ReduceMin 20: b F D I
ReduceMean,ReduceProd 18: F i32 i64 u32 u64
ReduceSum 13: F i32 i64 u32 u64
Relu 14: F i8 i16 i32
Round 11: F
ScatterElements 16: b F D I
Split 18: b F D I
TopK 11: F I
Where 16: b F D I
"""
"""The same document: DmlExecutionProvider. It has nothing of opset 22 and later."""

WEBGPU: Final = """
ms:GroupQueryAttention,ms:MatMulNBits,ms:RotaryEmbedding,ms:GatherBlockQuantized *: F
SimplifiedLayerNormalization,RMSNormalization,RotaryEmbedding,LayerNormalization,Gelu *: F
Abs,AveragePool,Ceil,Conv,Erf,Exp,Floor,GatherElements,Log,MatMul,Neg,Reciprocal,Relu,Sigmoid *: F
Slice,Softmax,Sqrt,Tanh,TopK *: F
Add,ArgMax,Concat,CumSum,Div,Equal,Greater,GreaterOrEqual,Identity,Less,LessOrEqual,Max,Min,Mul *: F i32 u32
Pad,ReduceMax,ReduceMean,ReduceMin,ReduceProd,ReduceSum,ScatterElements,Split,Squeeze,Sub,Transpose *: F i32 u32
And,Not *: b
Cast,Expand,Gather,Reshape *: F i32 u32 b u8
DequantizeLinear *: i4 u4 i8 u8
Pow *: F i32
Range *: f32 i32
Unsqueeze,Where *: F i32 u32 b
"""
"""onnxruntime-web 1.30, opset 23: where `python tools/probe_webgpu.py` saw a session place a node of each op and type.
Shape is left out: it reads no data, and is placed on the CPU on purpose."""

COREML: Final = """
Add,Sub,Mul,Div,Cast,Concat,Conv,Cos,Ceil,Erf,Exp,Gelu,Identity,LayerNormalization *: F
ArgMax,AveragePool,MatMul,Max,MaxPool,Reciprocal,ReduceSum,ReduceMean,ReduceMax *: F
Relu,Reshape,Round,Shape,Sin,Slice,Split,Sqrt,Squeeze,Sigmoid,Softmax,Tanh,Transpose,Unsqueeze *: F
Pow *: f32
Range *: F i32
"""
"""microsoft/onnxruntime, tools/ci_build/github/apple/coreml_supported_mlprogram_ops.md at commit 04f568d8. (Slice needs
constant bounds and Split constant sizes, which `fixed=` makes them.)"""

QNN: Final = """
Abs,Add,ArgMax,AveragePool,Cast,Concat,Conv,Cos,DequantizeLinear,Div,Equal,Exp,Expand,Floor,Gather *: F I i4 u4 b
Gelu,Greater,GreaterOrEqual,LayerNormalization,Less,LessOrEqual,Log,MatMul,Max,MaxPool,Min,Mul,Neg *: F I
Pad,Pow,ReduceMax,ReduceMean,ReduceMin,ReduceProd,ReduceSum,Relu,Reshape,Round,Sigmoid,Sign,Sin *: F I b
Slice,Softmax,Split,Sqrt,Squeeze,Sub,Tanh,TopK,Transpose,Unsqueeze,Where *: F I b
And,Not,Or *: b
QuantizeLinear *: F
"""
"""microsoft/onnxruntime (gh-pages), docs/execution-providers/QNN-ExecutionProvider.md at commit 019bde6f."""

OPENVINO: Final = """
Attention,RMSNormalization,RotaryEmbedding,LayerNormalization,Gelu *: F B
Abs,Add,And,ArgMax,AveragePool,BitShift,BitwiseAnd,BitwiseNot,BitwiseOr,BitwiseXor,Cast,Ceil,Concat,Conv,Cos *: *
CumSum,DequantizeLinear,Div,Equal,Erf,Exp,Expand,Floor,Gather,GatherElements,Greater,GreaterOrEqual,Identity *: *
If,IsNaN,Less,LessOrEqual,Log,MatMul,Max,MaxPool,Min,Mod,Mul,Neg,Not,Or,Pad,Pow,Range,Reciprocal,ReduceMax *: *
ReduceMean,ReduceMin,ReduceProd,ReduceSum,Relu,Reshape,Round,ScatterElements,Shape,Sigmoid,Sign,Sin,Slice *: *
Softmax,Split,Sqrt,Squeeze,Sub,Tanh,TopK,Transpose,Unsqueeze,Where,Xor *: *
QuantizeLinear,DynamicQuantizeLinear,MatMulInteger *: *
"""
"""What OpenVINO 2026.4 converts; its provider hands it subgraphs."""

TENSORRT: Final = """
RMSNormalization,RotaryEmbedding,LayerNormalization,Gelu *: F B
Abs,Add,Sub,Mul,Div,Neg,Max,Min,Mod,Pow,Sign *: F B i32 i64
And,Or,Xor,Not *: b
ArgMax,CumSum,TopK *: F B i32 i64
AveragePool,Conv,MaxPool,Ceil,Cos,Erf,Exp,Floor,IsNaN,Log,Reciprocal,Relu,Round,Sigmoid,Sin,Softmax,Sqrt,Tanh *: F B
Cast,Concat,Expand,Gather,GatherElements,Identity,If,Pad,Reshape,ScatterElements,Shape,Slice,Split *: F B b i32 i64 u8
Squeeze,Transpose,Unsqueeze,Where *: F B b i32 i64 u8
DequantizeLinear *: i4 i8
Equal,Greater,GreaterOrEqual,Less,LessOrEqual *: F B b i32 i64
MatMul,QuantizeLinear *: F B
Range *: f32 i32 i64
ReduceMax,ReduceMean,ReduceMin,ReduceProd,ReduceSum *: F B i32 i64
"""
"""What the ONNX parser of TensorRT-RTX 1.7 takes (`supports_operator`), in the types that its layers take. Attention is
left out: only half of some head sizes has a kernel, and ONNX cannot say that it may be taken apart; nor may it have a
cache. MatMulNBits is taken in half, blocks of 32 and up; DequantizeLinear says the same in every type."""
