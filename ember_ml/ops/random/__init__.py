"""Random numbers from keys: see `keys` for how, `distributions` for what of."""

from ember_ml.ops.random.distributions import (
    bernoulli, beta, categorical, choice, dirichlet, exponential, gamma, gumbel, laplace, normal, permutation, poisson, randint,
    truncated_normal,
)
from ember_ml.ops.random.keys import bits, fold, fold_in, key, next_key, random_bits, seed, split, uniform

__all__ = ["bernoulli", "beta", "bits", "categorical", "choice", "dirichlet", "exponential", "fold", "fold_in", "gamma", "gumbel", "key",
           "laplace", "next_key", "normal", "permutation", "poisson", "randint", "random_bits", "seed", "split", "truncated_normal",
           "uniform"]
