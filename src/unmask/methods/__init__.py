"""The methods: a name and the file and class that say it. Nothing is imported until it is asked for."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "mae": "unmask/methods/mae.py:MAE",
    "simmim": "unmask/methods/simmim.py:SimMIM",
    "maskfeat": "unmask/methods/maskfeat.py:MaskFeat",
    "eva": "unmask/methods/eva.py:EVA",
    "data2vec": "unmask/methods/data2vec.py:Data2Vec",
    "data2vec2": "unmask/methods/data2vec2.py:Data2Vec2",
    "ijepa": "unmask/methods/ijepa.py:IJEPA",
    "beit": "unmask/methods/beit.py:BEiT",
    "beit2": "unmask/methods/beit2.py:BEiT2",
    "crossmae": "unmask/methods/crossmae.py:CrossMAE",
    "bootmae": "unmask/methods/bootmae.py:BootMAE",
    "pixio": "unmask/methods/pixio.py:Pixio",
    "aim": "unmask/methods/aim.py:AIM",
    "igpt": "unmask/methods/igpt.py:IGPT",
    "dae": "unmask/methods/dae.py:DAE",
    "dino": "unmask/methods/dino.py:DINO",
    "ibot": "unmask/methods/ibot.py:IBOT",
    "dinov2": "unmask/methods/dinov2.py:DINOv2",
    "cae": "unmask/methods/cae.py:CAE",
    "milan": "unmask/methods/milan.py:MILAN",
    "mocov3": "unmask/methods/mocov3.py:MoCoV3",
    "simclr": "unmask/methods/simclr.py:SimCLR",
    "hiera_mae": "unmask/methods/hiera_mae.py:HieraMAE",
    "fcmae": "unmask/methods/fcmae.py:FCMAE",
    "adamae": "unmask/methods/adamae.py:AdaMAE",
    "mae_ct": "unmask/methods/mae_ct.py:MAECT",
    "mae_lite": "unmask/methods/mae_lite.py:MAELite",
    "modern_mae": "unmask/methods/modern_mae.py:ModernMAE",
    "distill": "unmask/methods/distill.py:Distill",
}
TOKENIZERS: dict[str, str] = {  # vocabularies that some methods predict, trained by the same loop
    "dvae": "unmask/methods/dvae.py:DVAE",
    "vqkd": "unmask/methods/vqkd.py:VQKD",
}
TRANSFERS: dict[str, str] = {  # ways to train an encoder further on labels: trained by the same loop, opened again by the same names
    "finetune": "unmask/transfer/finetune.py:Finetune",
    "attentive": "unmask/transfer/attentive.py:Attentive",
}
LEARNERS = METHODS | TOKENIZERS | TRANSFERS
TASKS: dict[str, str] = {  # what kind of run the loop makes of each
    "tokenizing": "unmask/training/tokenizing.py:Tokenizing",
    "pretraining": "unmask/training/pretraining.py:Pretraining",
    "transfer": "unmask/transfer/teaching.py:Teaching",
}


def place(name: str) -> tuple[str, str]:
    """File (a path) or module, and class, of a learner's settings: of `LEARNERS`, `my_method.py:Name` or `package.module:Name`."""
    import difflib

    from unmask.errors import Refused

    where = LEARNERS.get(name, name)
    if ":" not in where:
        near = difflib.get_close_matches(name, [*METHODS, *TOKENIZERS], 1)
        raise Refused(f"unknown method '{name}'" + (f": did you mean {near[0]}?" if near else f"; there are: {', '.join(METHODS)}"))
    source, _, kind = where.rpartition(":")
    return source, kind


def find(name: str) -> type:
    """The class of a method by its name or place (see `place`)."""
    import importlib
    import importlib.util
    import sys
    from pathlib import Path

    from unmask.errors import Refused

    source, kind = place(name)
    if name in LEARNERS:
        module = importlib.import_module(source.removesuffix(".py").replace("/", "."))
    elif source.endswith(".py"):
        if not Path(source).is_file():
            raise Refused(f"no file {source} for the method {name}")
        title = f"unmask_method_{Path(source).stem}"
        spec = importlib.util.spec_from_file_location(title, source)
        assert spec is not None and spec.loader is not None
        module = sys.modules[title] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(source)
        except ImportError as error:
            raise Refused(f"cannot import {source} for the method {name}: {error}") from None
    if kind not in vars(module):
        raise Refused(f"{source} has no class {kind}")
    return vars(module)[kind]


def __getattr__(name: str):
    """`unmask.methods.MAE` without importing torch before it is asked for."""
    for known, where in METHODS.items():
        if where.endswith(f":{name}"):
            return find(known)
    raise AttributeError(f"module 'unmask.methods' has no attribute '{name}'")
