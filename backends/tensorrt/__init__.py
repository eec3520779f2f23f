"""The TensorRT backend: engines for NVIDIA GPUs, built through the network API.

backend.py    options and steps          legalise.py   what layers say          targets.py   compute capabilities
profiles.py   which sizes an engine has  network.py    a definition and a build  emitter.py   layers under construction
lowerings/    op by op                   codes.py      encoded weights           constants.py where weights lie
sizes.py      symbolic sizes             numbers.py    dtypes                    library.py   which package, log.py
process.py    asking the child process   worker.py     which is this             plan.py      what is held how
description.py network.json              evaluator/    what the layers compute   interface.py run.py  a built engine
"""

from irlab.backends.tensorrt.backend import TensorRT

__all__ = ["TensorRT"]
