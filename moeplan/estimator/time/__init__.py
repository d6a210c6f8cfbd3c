"""The time of one optimizer step, for whole tables of candidates.

Rules, in the order in which they are applied:

1. Kernels (``efficiency.py``): the larger of arithmetic and memory time, plus launch. Without CUDA graphs the host's
   launches set the pace where kernels are short. Experts that run eagerly wait for the host once per pass and are
   launched one by one; the fused path of newer software (``items.Pricer.fused``) spares both.
2. Communication inside a layer (``collectives.py``, ``layers.py``): exposed unless Megatron runs it beside computation:
   the backward gather and scatter of column-parallel layers (beside 70 % of backward, of which the fitted share
   ``tp_backward`` still shows), all of tensor parallelism but a fitted share with ``overlap.tp``, the expert
   exchange behind another micro batch with ``overlap.ep`` (but the share ``ep_exposed``, and the whole exchange of the
   micro batches that fill the pipeline, which find no other), the context-parallel ring behind attention. What is
   hidden still slows computation by the fitted ``interference`` (multiprocessors and memory bandwidth that
   communication takes).
3. Pipeline (``schedule.py``): the slowest stage repeats for every micro batch, the rest is bubble.
4. Once per step (``sharding.py``): gradients are reduced behind the last backward and parameters gathered behind the
   first forward where ``overlap`` says so; with ``sharding`` 2 gradients, and with 3 also parameters, move every micro
   batch.
"""

from __future__ import annotations

from moeplan.estimator.time.breakdown import Detail, detail
from moeplan.estimator.time.step import StepTime, step_time
from moeplan.estimator.time.uncertainty import uncertainty

__all__ = ["Detail", "StepTime", "detail", "step_time", "uncertainty"]
