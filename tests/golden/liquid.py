"""Liquid networks: LTC, CfC, their wirings and mixed memory, as ncps computes them."""

from __future__ import annotations

import ember_ml as em
from ember_ml.interop.ncps import ltc_weights, weights
from ember_ml.nn.layers import LTC, NCP, AutoNCP, CfC, FullyConnected, LTCConfig, RandomWiring, WiredCfC, WiredCfCConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.cfc import CfCConfig
from tests.golden.case import Built, Case, Tensors, builder, with_weights


def wiring(c: dict):
    """The wiring's config from the original's arguments."""
    kind, c = c["kind"], {k: v for k, v in c.items() if k != "kind"}
    if kind == "FullyConnected":
        return FullyConnected(c["units"], c["output_dim"], c["self_connections"], c["erev_init_seed"])
    if kind == "Random":
        return RandomWiring(c["units"], c["output_dim"], c["sparsity_level"], c["random_seed"])
    if kind == "AutoNCP":
        return AutoNCP(c["units"], c["output_size"], c["sparsity_level"], c["seed"])
    return NCP(c["inter_neurons"], c["command_neurons"], c["motor_neurons"], c["sensory_fanout"], c["inter_fanout"],
               c["recurrent_command_synapses"], c["motor_fanin"], c["seed"])


@builder("liquid/wirings")
def wirings(case: Case, dtype: str) -> Built:
    """Every wiring's matrices and layers."""
    def forward(_x: Tensors, _params: Tensors) -> Tensors:
        out = {}
        for name, c in case.config["wirings"].items():
            made = wiring(c).build(case.config["n_in"])
            out |= {f"{name}.adjacency": em.tensor(made.synapses), f"{name}.sensory_adjacency": em.tensor(made.sensory)}
            out |= {f"{name}.layer_{i}": em.tensor(list(layer)) for i, layer in enumerate(made.layers)}
        return out

    return Built(forward, {})


@builder("liquid/ltc_cell_*")
def ltc_cell(case: Case, dtype: str) -> Built:
    """One step, over one unit of time and over a time of its own for each sequence."""
    c = case.config
    layer = LTC(LTCConfig(c["n_in"], wiring(c["wiring"]), c["ode_unfolds"], softplus=c["implicit_param_constraints"], eps=c["epsilon"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(layer, ltc_weights(layer, p)):
            out, after = layer.step(x["x"], {"h": x["state"]})
            late, later = layer.step(x["x"], {"h": x["state"]}, x["elapsed"][:, 0])
        found = {"out": out, "next_state": after["h"], "out_elapsed": late, "next_state_elapsed": later["h"]}
        return found | {name: case_wiring(case, name) for name in case.expected if name not in found}

    return Built(forward, case.params(dtype))


def case_wiring(case: Case, name: str):
    """adjacency or sensory_adjacency of the case's wiring."""
    made = wiring(case.config["wiring"]).build(case.config["n_in"])
    return em.tensor(made.sensory if name.startswith("sensory") else made.synapses)


def layer_of(case: Case):
    """The layer of a sequence case."""
    c, name = case.config, case.name
    if name.startswith("ltc"):
        neurons = wiring(c["wiring"]) if c["wiring"] else FullyConnected(c["units"])
        return LTC(LTCConfig(c["n_in"], neurons, c["ode_unfolds"], c["mixed_memory"], c["implicit_param_constraints"], c["epsilon"]))
    if name.startswith("wired"):
        return WiredCfC(WiredCfCConfig(c["n_in"], wiring(c["wiring"]), c["mode"], c["proj_size"], wired_gate=False))
    return CfC(CfCConfig(c["n_in"], c["units"], c["mode"], c["proj_size"], c["backbone_units"], c["backbone_layers"], c["activation"],
                         c["mixed_memory"]))


@builder("liquid/ltc_sequence_*", "liquid/cfc_*", "liquid/wired_cfc*")
def sequence(case: Case, dtype: str) -> Built:
    """A sequence from a state and from nothing, with times of its own in some cases.

    The original takes times of shape (batch, length, units), all units alike, where the batch is not 1; Ember's are (batch, length).
    """
    layer = layer_of(case)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        elapsed = x["timespans"][:, :, 0] if "timespans" in x else None
        start = {"h": x["h0"]} | ({"c": x["c0"]} if "c0" in x else {})
        with with_weights(layer, weights(layer, p)):
            y, last = layer(x["x"], start, elapsed)
            from_nothing, _ = layer(x["x"], None, elapsed)
        found = {"y": y, "y_zero_state": from_nothing, "hn": last["h"]} | ({"cn": last["c"]} if "c0" in x else {})
        return found | {name: case_wiring(case, name) for name in case.expected if name not in found}

    return Built(forward, case.params(dtype))
