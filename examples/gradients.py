"""One function, every engine that is installed: values, native gradients, and Ember's own tape as a second opinion."""

import ember_ml as em


def energy(x):
    """sum over rows of log(1 + x^2), weighted by a softmax of the row."""
    return (em.ops.softmax(x) * em.ops.log1p(x * x)).sum()


for engine in em.available():
    with em.using(engine):
        x = em.random.normal(em.random.key(7), (3, 4))
        value, native = em.value_and_grad(energy)(x)
        _, taped = em.value_and_grad(energy, mode="tape")(x)
        difference = (native - taped).abs().max().item()
        print(f"{x.device:<12} value {value.item():.6f}   largest difference to the tape {difference:.1e}")
