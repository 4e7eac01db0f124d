"""`python -m opsd.trainer.doctor`: what training finds on this machine, as JSON on stdout."""

import json
import platform

import torch

from opsd.trainer.loss import in_use, why_not_native


def findings() -> dict[str, object]:
    """Versions, devices, and which implementation of the loss each device has."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or "",
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "loss": {kind: in_use(kind) for kind in kinds},
        "loss_problems": {kind: why for kind in kinds if (why := why_not_native(kind))},
    }


if __name__ == "__main__":
    print(json.dumps(findings()))
