"""Facts about the training frameworks that writing launch files and reading them back share.

``megatron_flags`` says which Megatron-LM flags stand for which plan keys; ``carried`` is the one structured line with
which a launch file carries the keys that its framework has no word for. ``launch`` writes with them and ``importers``
reads with them, so neither direction can drift from the other.
"""
