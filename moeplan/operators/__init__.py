"""What a layer is made of: operators that declare their weights, their work and what they keep for backward.

Nothing here knows a framework's flags, a configuration file or a GPU. Every method takes a :class:`Shard`, whose fields
are arrays over candidates, and answers with arrays of the same shape: one plan is a shard of one row.
"""
