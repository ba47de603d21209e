"""What this machine has to train on."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.assembly.doctor import core_count, host_memory
from rlkit.generation import choose as choose_sampler
from rlkit.wording import counted, size


@dataclass(frozen=True)
class Machine:
    gpus: int
    """0: the CPU trains."""
    memory: int
    """Bytes: of the smallest GPU, or of the host."""
    name: str

    def of_a_rank(self, ranks: int) -> int:
        """Bytes that the weights, gradients and the optimizer of one of `ranks` may have. Activations, and on a GPU
        vLLM, need the rest."""
        if self.gpus:
            return int(self.memory * min(1, self.gpus / ranks) * (0.55 if choose_sampler()[0] == "vllm" else 0.75))
        return int(self.memory * 0.7 / ranks)


def look_at() -> Machine:
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        least = min(gpu.total_memory for gpu in gpus)
        return Machine(len(gpus), least, f"{counted(len(gpus), 'GPU')} ({gpus[0].name}, {size(least)})")
    memory = host_memory()
    return Machine(0, memory, f"no GPU, {counted(core_count(), 'core')}, {size(memory)} of memory")
