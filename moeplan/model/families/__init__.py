"""One reader for each family of Hugging Face configurations, registered by ``model_type``."""

from moeplan.model.families import dense, grouped_moe, hybrid, latent, softmax_moe  # noqa: F401  (importing registers)
from moeplan.model.families.common import FAMILIES as FAMILIES
