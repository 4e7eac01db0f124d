"""Import what an installation stands on; the last line of output says what was found."""

import importlib
import importlib.metadata

import torch
import vllm

# Loading the compiled module registers the trainer's operators.
importlib.import_module("opsd.trainer._C")
for contract in ("admin", "collection", "inference", "training"):
    importlib.import_module(f"opsd.v1.{contract}_pb2")

print(
    f"setup: opsd {importlib.metadata.version('opsd')}, vLLM {vllm.__version__}, "
    f"torch {torch.__version__}"
)
