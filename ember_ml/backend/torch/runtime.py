"""What torch does its own way: gradients, custom rules, checkpointing, compilation, memory."""

from __future__ import annotations

import platform
import resource
import shutil
import warnings
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ember_ml.backend.torch.cpu import mkl
from ember_ml.backend.torch.operator import operator, untraced


#: torch's own guard, which another version may lack: then its autograd looks at each operation, and finds nothing to do
_BelowAutograd = getattr(torch._C, "_AutoDispatchBelowAutograd", nullcontext)

_inside: ContextVar[bool] = ContextVar("ember_torch_gradient", default=False)


class TorchRuntime:
    """Eager, with native gradients; `compile` is torch.compile where a C++ compiler is at hand."""

    compiles = "loss"                                    # `compile` takes a whole step as well, in twice the time
    has_gradients = True

    def value_and_grad(self, fn, leaves):
        """(value, aux, gradients). Inside another gradient the result stays differentiable."""
        nested = _inside.get()                           # then also what `fn` has from outside may be asked for
        inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in leaves]
        with torch.enable_grad():
            token = _inside.set(True)
            try:
                value, aux = fn(inputs)
            finally:
                _inside.reset(token)
            grads = torch.autograd.grad(value, inputs, create_graph=nested, allow_unused=True) \
                if value.requires_grad else [None] * len(inputs)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]
        if nested:
            return value, aux, grads
        return value.detach(), [a.detach() for a in aux], grads

    def with_rule(self, forward, rule, args, keeps_output=True):
        """One autograd.Function for all ops with a rule: it keeps the inputs, and the rule runs in torch's own ops."""
        if not (torch.is_grad_enabled() and any(a.requires_grad for a in args)):
            return forward(*args)
        return _Rule.apply(forward, rule, keeps_output, *args)

    def pull(self, fn, inputs, cotangents):
        """Gradients of sum(output * cotangent) by torch's autograd; differentiable themselves where that is under way.

        None inside an operator, where torch records nothing.
        """
        if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality):
            return None
        again = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *cotangents))
        with torch.enable_grad():
            # an input may be part of another's history: views and copies stand for the inputs alone
            leaves = [x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_(x.is_floating_point() or x.is_complex())
                      for x in inputs]
            pairs = [(y, g) for y, g in zip(fn(leaves), cotangents) if y.requires_grad]
            wanted = [x for x in leaves if x.requires_grad]
            found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True, create_graph=again)
                         if pairs else [None] * len(wanted))
        return [next(found) if x.requires_grad else None for x in leaves]

    def is_watched(self, x) -> bool:
        return torch.is_grad_enabled() and x.requires_grad

    def is_recorded(self) -> bool:
        """Whether a compiler records what is computed now."""
        return get_proxy_mode() is not None

    def read(self, x) -> list | None:
        return None if self.is_recorded() else x.tolist()

    operator = staticmethod(operator)

    def untraced(self):
        return untraced()

    @contextmanager
    def inference(self):
        """Below torch's autograd, whose look at each operation takes a twentieth of a decoding step. Its inference mode would spare more, but
        marks tensors for good: one that a layer keeps could never again stand in a gradient.
        """
        with torch.no_grad(), _BelowAutograd():
            yield

    def checkpoint(self, fn):
        return lambda *args: torch_checkpoint(fn, *args, use_reentrant=False, preserve_rng_state=False)

    def compile(self, fn):
        return _traced(fn) if can_compile() else fn

    def stop_gradient(self, x):
        return x.detach()

    def after(self, natives, on):
        return natives

    def buffer(self, like, shape):
        return like.new_empty(shape) if get_proxy_mode() is None else None

    def synchronize(self, natives):
        if any(x.is_cuda for x in natives):
            torch.cuda.synchronize()

    def pace(self, natives):
        """torch computes at once, or in the order of its stream."""

    def long_run(self):
        return nullcontext()

    def peak_memory(self) -> int:
        """Largest allocation on the GPU since the reset, or the largest resident size of the process on a CPU."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024

    def reset_peak_memory(self):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def describe(self) -> dict[str, str]:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"]
        return {"version": torch.__version__, "device": ", ".join(devices), "threads": str(torch.get_num_threads()),
                "convolution": "on CPUs by " + ("MKL, called directly" if mkl.works() else "torch.fft: no MKL to call directly"),
                "compile": "torch.compile" if can_compile() else "eager: no C++ compiler found (install g++ or clang)"}


def _traced(fn):
    """`fn(*natives) -> list of natives`, compiled once per form of its inputs.

    Dynamo would read the Python of everything that `fn` calls, and break the graph at each construct it does not know
    (a ContextVar, a gradient inside). So `fn` runs once under a recorder of torch's own ops, gradients included, and
    the flat graph that comes out is what torch.compile sees.
    """
    compiled = {}

    def run(*natives):
        form = (torch.is_grad_enabled(), *((x.shape, x.dtype, x.device, x.requires_grad) for x in natives))
        if form not in compiled:
            compiled[form] = torch.compile(make_fx(fn)(*natives), dynamic=False, fullgraph=True)
            with warnings.catch_warnings():              # FFTs stay library calls: there is nothing to warn of
                warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex")
                return list(compiled[form](*natives))
        return list(compiled[form](*natives))
    return run


@lru_cache(maxsize=1)
def can_compile() -> bool:
    """Whether torch.compile finds the C++ compiler that its CPU code needs (on CUDA it brings Triton)."""
    return torch.cuda.is_available() or any(shutil.which(c) for c in ("c++", "g++", "clang++", "cl"))


class _Rule(torch.autograd.Function):
    """forward(*args), with our rule as its gradient. Twice differentiable, since the rule is made of torch ops."""

    @staticmethod
    def forward(ctx, forward, rule, keeps_output, *args):
        out = forward(*args)
        ctx.rule = rule
        many = isinstance(out, tuple)
        ctx.save_for_backward(*args, *(out if many else (out,) if keeps_output else ()))
        ctx.args, ctx.many = len(args), many
        ctx.set_materialize_grads(False)                 # it would write whole outputs of zeros, where a view of one zero does
        return out

    @staticmethod
    def backward(ctx, *cotangents):
        saved = ctx.saved_tensors                        # once: a checkpoint computes them when they are asked for, and lets them go
        args, outputs = saved[:ctx.args], saved[ctx.args:]
        if ctx.many:
            cotangents = tuple(o.new_zeros(()).expand(o.shape) if c is None else c for c, o in zip(cotangents, outputs))
        else:
            (cotangents,), outputs = cotangents, outputs[0] if outputs else None
        return None, None, None, *ctx.rule(cotangents, outputs, list(args), list(ctx.needs_input_grad[3:]))
