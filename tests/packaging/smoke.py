"""Uses an installed Ember and prints what it found as JSON; test_wheel.py runs it outside the checkout.

Arguments: the kernel files whose text it asks for, as language/stem, such as metal/moe.
"""

import json
import sys

import ember_ml as em
from ember_ml.kernels import source_text

engines = sorted({"mlx", "torch", "cupy"} & set(sys.modules))

with em.using("numpy"):
    x, y = em.tensor([1.0, 2.0, 3.0]), em.tensor([1.0, -1.0, 2.0])
    value, gradients = em.value_and_grad(lambda x, y: em.ops.sum(x * x * y), argnums=(0, 1))(x, y)

found = {
    "file": em.__file__,
    "version": em.__version__,
    "engines_after_import": engines,
    "value": value.item(),
    "gradients": [g.tolist() for g in gradients],
    "kernels": {name: source_text(*name.split("/")) for name in sys.argv[1:]},
}
json.dump(found, sys.stdout)
