"""`make bench`: every benchmark of this folder, one after the other; each prints its table and writes its results."""

from benchmarks import (
    data, decode_hyena, demo_throughput, fftconv_cpu, lora_mlx_lm, mamba, matrix_state, op_overhead, plan, recurrence_memory, recurrent,
    step_overhead, trainer,
)

for benchmark in (op_overhead, step_overhead, trainer, demo_throughput, recurrent, mamba, matrix_state, recurrence_memory, fftconv_cpu,
                  decode_hyena, data, lora_mlx_lm, plan):
    benchmark.main()
