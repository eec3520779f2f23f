"""Write modules through the backend and run what it wrote in plain ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from irlab.backends.onnx import ONNX
from irlab.backends.onnx.writer import MODEL_FILE
from irlab.emission import write_alone
from irlab.ir import Module
from irlab.passmgr import Context
from irlab.verify import verify


def write(module: Module, directory: Path, **options: Any) -> Module:
    """The legalised module that was written to `directory`."""
    backend = ONNX(**options)
    directory.mkdir()
    legal = backend.legalise(module.clone(), Context(targets=("onnx",)))
    verify(legal)
    write_alone(backend, legal, directory, Context())
    return legal


def run_directory(directory: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs, on one thread, with activations of fused 4-bit products left in f32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs))))


def op_types(directory: Path) -> set[str]:
    """The node types in the main graph and its branches."""
    graphs = [onnx.load(directory / MODEL_FILE, load_external_data=False).graph]
    found = set()
    for graph in graphs:
        for node in graph.node:
            found.add(node.op_type)
            graphs.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return found
