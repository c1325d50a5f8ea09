"""A long convolution with its gates, its gradient, and the same result written as a plain double sum."""

import numpy as np

import ember_ml as em

B, D, L = 2, 3, 37
key = em.random.key(0)
u, k, gate = (em.random.normal(em.random.fold_in(key, i), shape) for i, shape in enumerate([(B, D, L), (D, L), (B, D, L)]))

y = em.ops.fftconv(u, k, v=gate, gelu=False)
by_hand = np.zeros((B, D, L))
x = (u * gate).numpy().astype(np.float64)
for t in range(L):
    for j in range(t + 1):
        by_hand[:, :, t] += k.numpy()[:, t - j] * x[:, :, j]
print(f"on {y.device}: largest difference to the double sum {np.abs(y.numpy() - by_hand).max():.1e}")

dk = em.grad(lambda k: (em.ops.fftconv(u, k, v=gate) ** 2).sum())(k)
print(f"gradient of the filter: shape {dk.shape}, norm {em.ops.norm(dk).item():.4f}")
