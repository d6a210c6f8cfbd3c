"""Number formats: what the GPU computes in and what the optimizer keeps its state in."""

from __future__ import annotations

from moeplan.search.facts import Facts
from moeplan.search.rules.base import Finding, View, rule

# Compute capability (times ten) from which NVIDIA tensor cores know a format: CUDA C++ Programming Guide, table
# "Tensor Core Input Data Types": bf16 and tf32 from 8.0, fp8 from 8.9, block-scaled mxfp8 and nvfp4 from 10.0.
_FIRST_CAPABILITY = {"bf16": 80, "tf32": 80, "fp8": 89, "mxfp8": 100, "nvfp4": 100}


def supported(facts: Facts, precision: str) -> bool:
    """Whether the GPU computes in ``precision``."""
    machine = facts.machine
    if machine.compute_capability and machine.compute_capability < _FIRST_CAPABILITY.get(precision, 0):
        return False
    return precision in machine.peak_tflops


@rule("precision", "precision", "the GPU's data sheet; CUDA C++ Programming Guide, Tensor Core input types")
def precision_runs_on_gpu(facts: Facts, view: View) -> Finding:
    """The GPU has arithmetic for the precision."""
    return Finding(
        ~view.test("precision", lambda level: supported(facts, level)),
        lambda row: f"{facts.machine.name} ({facts.machine.generation}) has no {row['precision']} arithmetic",
    )


@rule(
    "state_dtype offload_fraction optimizer sharding",
    "state_dtype offload_fraction sharding optimizer",
    "Megatron-Core optimizer_config.py: precision-aware optimizer needs Adam and the distributed optimizer",
)
def light_state_needs_sharded_adam(facts: Facts, view: View) -> Finding:
    """Low-precision or offloaded optimizer state comes with the precision-aware optimizer: Adam, sharding 1 or more."""
    light = ~view.equals("state_dtype", "fp32") | (view["offload_fraction"] > 0)
    return Finding(
        light & (~view.equals("optimizer", "adam") | (view["sharding"] < 1)),
        lambda row: (
            "a state_dtype below fp32 or offloaded optimizer state needs Adam with sharding 1 or more "
            f"(this plan: {row['optimizer']}, sharding {row['sharding']})"
        ),
        lambda row: "set optimizer.sharding: 1 and name: adam, or state_dtype: fp32 and offload_fraction: 0",
    )


@rule(
    "gradient_dtype precision", "gradient_dtype", "Megatron-Core param_and_grad_buffer.py: grad dtype is fp32 or param"
)
def gradients_no_narrower_than_parameters(facts: Facts, view: View) -> Finding:
    """16-bit gradients belong to 16-bit parameters."""
    return Finding(
        view.equals("gradient_dtype", "bf16", "fp16") & view.equals("precision", "fp32", "tf32"),
        lambda row: f"{row['gradient_dtype']} gradients of fp32 parameters do not exist in any framework",
        lambda row: "set optimizer.gradient_dtype: fp32",
    )
