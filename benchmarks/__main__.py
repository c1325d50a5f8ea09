"""`make bench`: every benchmark of this folder, one after the other; each prints its table and writes its results."""

from benchmarks import demo_throughput, op_overhead, step_overhead

for benchmark in (op_overhead, step_overhead, demo_throughput):
    benchmark.main()
