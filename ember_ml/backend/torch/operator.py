"""Kernels as torch operators: one opaque node to tracing and torch.compile, with shapes and gradients of their own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes


def operator(name: str, signature: inspect.Signature, launch: Callable, composite: Callable, rule: Callable | None,
             eager: Callable) -> Callable:
    """The operator `torch.ops.ember_kernel.<name>` as a function of tensors (or None) and static keywords.

    An operator costs tens of microseconds a call. So it is called where somebody records the call, and where its gradient is that
    of the composite; elsewhere `eager` is.

    Args:
        name, signature: the op's. Positional parameters are tensors, or None where that is the default.
        launch: runs the kernel; returns a tensor, or a tuple of tensors and Nones.
        composite: the same in torch's own operations: run on fake tensors, it tells the shapes of what `launch` returns.
        rule: `(args, static, cotangents, outputs, needs) -> gradients`, or None for the composite's gradient.
        eager: `launch`, with the rule as its gradient if there is one.
    """
    # a namespace of its own: the engine has operators of the same names for what it computes without kernels
    made = torch.library.custom_op(f"ember_kernel::{name}", lambda *args, **kw: _listed(launch(*args, **kw), args[0]),
                                   mutates_args=(), schema=_schema(signature))
    made.register_fake(lambda *args, **kw: [x.new_empty(x.shape) for x in _listed(composite(*args, **kw), args[0])])

    def keep(ctx, inputs, output, keyword_only_inputs=None):
        ctx.save_for_backward(*inputs, *output)
        ctx.static, ctx.count = dict(keyword_only_inputs or {}), len(inputs)

    def backward(ctx, cotangents):
        saved = ctx.saved_tensors                        # once: a checkpoint lets them go when they were read
        args, outputs = saved[:ctx.count], saved[ctx.count:]
        cotangents = [torch.zeros_like(o) if c is None else c for c, o in zip(cotangents, outputs)]
        needs = list(ctx.needs_input_grad[:ctx.count])
        if rule is None:
            return tuple(_composite_gradient(composite, args, ctx.static, cotangents, needs))
        return tuple(rule(args, ctx.static, _unlisted(cotangents, outputs), _unlisted(outputs, outputs), needs))

    made.register_autograd(backward, setup_context=keep)

    def run(*args, **kw):
        if get_proxy_mode() is None and _are_real(args) and (rule is not None or not _is_watched(args)):
            return eager(*args, **kw)
        if not all(a is None or isinstance(a, torch.Tensor) for a in args):
            return composite(*args, **kw)                  # a prepared filter, which no operator takes
        out = made(*args, **kw)
        return _unlisted(out, out)
    return run


def _are_real(args) -> bool:
    """Whether there is memory behind all tensors: those of a compiler that only looks at shapes are of a subclass."""
    return all(type(a) in (torch.Tensor, torch.nn.Parameter) or not isinstance(a, torch.Tensor) for a in args)


def _is_watched(args) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def _schema(signature: inspect.Signature) -> str:
    tensors = [f"Tensor {p.name}" if p.default is p.empty else f"Tensor? {p.name}=None" for p in signature.parameters.values()
               if p.kind is p.POSITIONAL_OR_KEYWORD]
    static = [f"{p.annotation} {p.name}" if p.default is p.empty else
              f"{type(p.default).__name__} {p.name}={json.dumps(p.default) if isinstance(p.default, str) else p.default}"
              for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    return f"({', '.join(tensors + ['*'] * bool(static) + static)}) -> Tensor[]"


def _listed(out, like: torch.Tensor) -> list[torch.Tensor]:
    """What an operator may return. None becomes a bool tensor without elements, which no kernel makes."""
    nothing = like.new_empty((0,), dtype=torch.bool)
    return [nothing.clone() if x is None else x for x in (out if isinstance(out, tuple) else (out,))]


def _unlisted(values, outputs):
    """The inverse of `_listed`, for values that belong to these outputs."""
    back = tuple(None if o.dtype is torch.bool else v for v, o in zip(values, outputs))
    return back if len(back) > 1 else back[0]


def _composite_gradient(composite, args, static, cotangents, needs):
    """Gradients by torch's autograd through the composite; differentiable again where the backward pass is."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # an argument may depend on another one: views and copies stand for the arguments alone
        leaves = [a if not need else a.view_as(a) if again else a.detach().requires_grad_() for a, need in zip(args, needs)]
        outputs = composite(*leaves, **static)
        pairs = [(o, c) for o, c in zip(outputs if isinstance(outputs, tuple) else (outputs,), cotangents)
                 if o is not None and o.requires_grad]
        wanted = [a for a, need in zip(leaves, needs) if need]
        grads = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [c for _, c in pairs], allow_unused=True,
                                         create_graph=again))
    return [next(grads) if need else None for need in needs]


@contextmanager
def untraced():
    """Inside, no tracing, fake tensors or gradients: what runs here belongs to no graph that is being made."""
    with _disable_current_modes(), torch.no_grad():
        yield
