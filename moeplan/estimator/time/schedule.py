"""Pipeline bubbles by formula: 1F1B, interleaved 1F1B, zero-bubble and DualPipe, with uneven stages.

Every schedule repeats the slowest stage once per micro batch; what remains is the time in which that stage waits for
the pipeline to fill and drain. With F, B and W the forward, whole backward and weight-gradient time of one stage:

=========== =============================== =========================================================================
schedule    bubble                          source
=========== =============================== =========================================================================
1F1B        (PP-1) (F+B)                    Narayanan et al., arXiv:2104.04473, section 2.2
interleaved (PP-1) (F+B) / VPP              the same
zero bubble (PP-1) (F+B-2W)                 Qi et al., arXiv:2401.10241 (ZB-H1), as in DualPipe's table
DualPipe    (PP/2-1) (F&B + B - 3W)         DeepSeek DualPipe, README table; F&B taken as F + B
=========== =============================== =========================================================================

With uneven stages, ``(PP-1) X`` becomes the sum of X over all stages less that of the slowest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeplan.operators.base import Array


def bubble_s(
    pp: Array,
    vpp: Array,
    zero_bubble: NDArray[np.bool_],
    dualpipe: NDArray[np.bool_],
    others: Array,
    others_weight: Array,
    stage_backward: Array,
    stage_total: Array,
    stage_weight: Array,
) -> Array:
    """Idle seconds of the slowest stage over one step; all arrays of one shape.

    Args:
        pp: Pipeline stages.
        vpp: Virtual stages per stage (1 for a plain pipeline).
        zero_bubble: Rows on the zero-bubble schedule.
        dualpipe: Rows on DualPipe.
        others: F + B summed over all stages but the slowest.
        others_weight: W summed over the same.
        stage_backward: B of the slowest stage (for DualPipe: of one of its two chunks).
        stage_total: F + B of the same.
        stage_weight: W of the same.
    """
    filling = others / vpp
    zero = np.maximum(others - 2 * others_weight, 0.0)
    dual = np.maximum(pp / 2 - 1, 0.0) * np.maximum(stage_total + stage_backward - 3 * stage_weight, 0.0)
    return np.where(dualpipe, dual, np.where(zero_bubble, zero, filling))
