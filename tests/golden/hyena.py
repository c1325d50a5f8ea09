"""Hyena's parts: the FFT convolution, the implicit filter and the operator, as HyenaDNA computes them."""

from __future__ import annotations

import ember_ml as em
from ember_ml import ops
from ember_ml.interop.hyena_dna import filter_weights, operator_weights
from ember_ml.nn.layers import Hyena, HyenaConfig, HyenaFilter, HyenaFilterConfig
from tests.golden.case import Built, Case, Tensors, builder, with_weights

ACTIVATION_NAMES = {"id": "identity", "linear": "identity", "none": "identity", None: "identity", "swish": "silu"}


@builder("hyena/fftconv_ref")
def fftconv_ref(case: Case, dtype: str) -> Built:
    """u (B, H, L) with skip; gelu, dropout mask, future kernel; y5 has one filter per axis 2 of five."""
    def forward(x: Tensors, _params: Tensors) -> Tensors:
        u, k, d, mask, u5 = x["u"], x["k"], x["D"], x["dropout_mask"], x["u5"]
        plain = {gelu: ops.fftconv(u, k, d, gelu=gelu) for gelu in (False, True)}

        def masked(gelu: bool):
            # The op gives its mask no gradient, because a dropout mask needs none; the reference's has one, dy/dmask =
            # the unmasked output. The second term adds that and is zero itself.
            still = em.stop_gradient(mask)
            y = ops.fftconv(u, k, d, dropout_mask=still, gelu=gelu)
            return y + em.stop_gradient(plain[gelu]) * ops.expand_dims(mask - still, -1)

        rows = ops.reshape(u5, (-1, *k.shape))
        return {"y": plain[False], "y_gelu": plain[True], "y_mask": masked(False), "y_gelu_mask": masked(True),
                "y_krev": ops.fftconv(u, k, d, k_reverse=x["k_rev"]),
                "y5": ops.reshape(ops.fftconv(rows, k, d), u5.shape)}

    return Built(forward, case.params(dtype))


def padded_fftconv(u, k, d):
    """The reference's `bidirectional=True`: no bidirectional convolution, but a causal one of a delayed signal.

    It puts about L / 2 zeros before the input, convolves on a circle of 2 L points and keeps the first L: the output
    comes late by that many steps, and what runs over the end of the circle is added at its beginning. Ember's `fftconv`
    is bidirectional by `k_reverse`; this fault is composed here, to show that the numbers are the reference's.
    """
    length = u.shape[-1]
    before = (length + 2 * (length // 2)) // 2 - length // 2
    late = ops.pad(u, ((0, 0), (0, 0), (before, 2 * length - before)))
    line = ops.fftconv(late, k)                            # 3 L points of the line: the first circle and its overrun
    return line[:, :, :length] + line[:, :, 2 * length:] + ops.expand_dims(d, -1) * u


@builder("hyena/fftconv_ref_bidirectional")
def fftconv_ref_bidirectional(case: Case, dtype: str) -> Built:
    """y by the padded convolution; y_causal with gelu."""
    def forward(x: Tensors, _params: Tensors) -> Tensors:
        return {"y": padded_fftconv(x["u"], x["k"], x["D"]),
                "y_causal": ops.fftconv(x["u"], x["k"], x["D"], gelu=True)}

    return Built(forward, case.params(dtype))


@builder("hyena/fftconv_h3_ref_*")
def fftconv_h3_ref(case: Case, dtype: str) -> Built:
    """H3's q * conv(k v), and the same with a kernel of the future."""
    def forward(x: Tensors, _params: Tensors) -> Tensors:
        def h3(reverse=None):
            return ops.fftconv(x["k"], x["ssm_kernel"], x["D"], v=x["v"], q=x["q"], k_reverse=reverse,
                               head_dim=case.config["head_dim"])

        return {"y": h3(), "y_rev": h3(x["ssm_kernel_rev"])}

    return Built(forward, case.params(dtype))


def filter_options(c: dict) -> dict:
    """HyenaFilterConfig's options from those of the original filter, whose defaults hold where the case names none."""
    return dict(features=c["emb_dim"], depth=c.get("num_inner_mlps", 2), frequency=float(c.get("w", 1)),
                shift=c.get("shift", 0.0), fast_decay=c.get("fast_decay_pct", 0.3),
                slow_decay=c.get("slow_decay_pct", 1.5), target=c.get("target", 0.01), learn_positions=True,
                learn_decay=c.get("modulation_lr", 0.0) > 0, window=c.get("modulate", True),
                normalized=c.get("normalized", False),
                network="linear" if c.get("linear_mixer", False) else "sine")


@builder("hyena/hyena_filter*")
def hyena_filter(case: Case, dtype: str) -> Built:
    """h (1, L, channels) of L and of all positions, and the convolution of x with the first."""
    c = case.config
    module = HyenaFilter(HyenaFilterConfig(c["d_model"], c["seq_len"], width=c["order"], **filter_options(c)),
                         key=em.random.key(0))
    convolve = padded_fftconv if c.get("bidirectional", False) else ops.fftconv

    def forward(x: Tensors, params: Tensors) -> Tensors:
        with with_weights(module, filter_weights(module, params)):
            h, h_full = module(c["L"]), module()
        skip = params["bias"] if c.get("bias", True) else params["bias"] * 0.0

        def as_original(k):
            return ops.expand_dims(ops.swap_axes(k), 0)

        return {"h": as_original(h), "h_full": as_original(h_full), "y": convolve(x["x"], h, skip)}

    return Built(forward, case.params(dtype))


@builder("hyena/hyena_operator_*")
def hyena_operator(case: Case, dtype: str) -> Built:
    """The operator of the full repository, with filter channels '(d o)', and the standalone one, '(o d)'."""
    c = case.config
    convolutions = c["order"] - 1
    activation = c.get("activation", "id")
    options = filter_options({"shift": 0.05} | c if standalone(case) else c)
    module = Hyena(HyenaConfig(
        c["d_model"], c["l_max"], order=c["order"], short_taps=c.get("short_filter_order", 3),
        filter=dict(width=c["filter_order"], **options), activation=ACTIVATION_NAMES.get(activation, activation),
        order_scale=c.get("post_order_ffn", False), outer_mixing=c.get("outer_mixing", False)), key=em.random.key(0))

    def forward(x: Tensors, params: Tensors) -> Tensors:
        with with_weights(module, operator_weights(module, params, 1 if standalone(case) else convolutions)):
            # The original drops what lies beyond l_max, Ember refuses it; the operator is causal, so cutting first is
            # the same.
            y, _state = module(x["u"][:, :c["l_max"]])
        return {"y": y}

    return Built(forward, case.params(dtype))


def standalone(case: Case) -> bool:
    return case.meta["source"]["object"].startswith("standalone")
