"""One reader for each family of Hugging Face configurations, registered by ``model_type``."""

from moeplan.model.families import (  # noqa: F401  (importing registers)
    classic,
    dense,
    grouped_moe,
    hybrid,
    latent,
    recent,
    softmax_moe,
    state_space,
)
from moeplan.model.families.common import FAMILIES as FAMILIES
