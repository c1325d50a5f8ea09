"""Golden cases: Ember's layers and models against arrays that the original projects computed.

    python -m tests.golden tests/golden/data/hyena

`case.py` reads a case, `<area>.py` builds the Ember side of its cases, `runner.py` compares. The data and its
description are in `data/`.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec

if "mlx.core" not in sys.modules:
    # MLX reads it when it is imported; without it float32 products have about TF32 precision on newer chips.
    os.environ["MLX_ENABLE_TF32"] = "0"

for _area in ("hf", "hyena", "hyena_models", "lfm2", "liquid", "mad", "mad_hyena", "mad_moe", "stripedhyena", "torch", "torch_functions", "xlstm"):
    if find_spec(f"tests.golden.{_area}"):
        import_module(f"tests.golden.{_area}")
