"""Training: one loop (`fit`) with its state, optimizer, guards, records and reports.

The loop trains what `loss(model, batch, key)` says and knows nothing of state space models.

>>> from ssmjax.training.fit import FitConfig, fit
>>> from ssmjax.training.optim import adamw
"""
