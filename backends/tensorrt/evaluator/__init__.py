"""Evaluates a network layer by layer in NumPy, without a GPU: what the layers say is what is computed.

    run.py      walks an INetworkDefinition, demand first       kernels.py    one function for each kind of layer
    windows.py  convolution and pooling

This is a reference for what the *network* means; it is not TensorRT's engine, whose kernels and fusions it cannot see.
"""

from irlab.backends.tensorrt.evaluator.run import Evaluator

__all__ = ["Evaluator"]
