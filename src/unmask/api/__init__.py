"""The verbs in Python: each does what its command does (`unmask VERB --help`) and takes the same settings by the same names.

A name with a dot is given as `**{"method.mask_ratio": 0.6}`. What can be refused without torch is refused before torch is imported.
"""

from unmask.api.compare import compare
from unmask.api.give import export, load_encoder, load_transform
from unmask.api.measure import embed, evaluate
from unmask.api.neighbours import neighbours
from unmask.api.see import inspect, reconstruct, report, runs, show_encoder, show_mask, show_views, show_weights
from unmask.api.train import distill, pretrain, resume, train_tokenizer

__all__ = ["distill", "pretrain", "resume", "train_tokenizer"]
__all__ += ["compare", "embed", "evaluate", "neighbours"]
__all__ += ["inspect", "reconstruct", "report", "runs", "show_encoder", "show_mask", "show_views", "show_weights"]
__all__ += ["export", "load_encoder", "load_transform"]
