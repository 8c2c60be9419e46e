"""What is compared: pieces of work, with the options that the programs of both sides know."""
from dataclasses import dataclass, field

TORCH, ORT = "torch_peer.py", "ort_peer.py"
SIZES = {
    # steps: of the training step, of a batch that is embedded, and of one image
    "full": {"rounds": 2, "vit": 8, "small": 64, "embed": (1, 8), "n": (64, 512, 4096), "steps": (3, 11, 41),
             "peak": 15},
    "quick": {"rounds": 1, "vit": 2, "small": 8, "embed": (1, 4), "n": (64, 512), "steps": (1, 3, 5), "peak": 5},
    "tiny": {"rounds": 1, "vit": 2, "small": 2, "embed": (1, 2), "n": (8,), "steps": (1, 1, 1), "peak": 1},
}


@dataclass
class Row:
    mode: str
    work: str
    arguments: list
    precision: str = "fp32"
    peers: dict = field(default_factory=dict)  # program and more arguments by name
    ours: list = field(default_factory=list)   # more arguments of our program


# What else to choose for a step: sums as they are defined; none of the blocks computed again (by default 2 of ViT-S are), or all.
CHOICES = {"plain products": ["--plain"], "no block computed again": ["--recompute", "0"],
           "all blocks computed again": ["--memory"]}


def options(**values):
    return [text for key, value in values.items() for text in ("--" + key.replace("_", "-"), str(value))]


def torch_ways(compiled, *more):
    ways = {"eager": [TORCH, *more]}
    if compiled:
        ways["compiled"] = [TORCH, "--compile", *more]
    return ways


def rows(size, modes, compiled):
    """What is measured; compiled: in PyTorch, also as torch.compile makes it, which takes minutes for a row."""
    s = SIZES[size]
    vit = {"dim": 384, "depth": 12, "heads": 6, "patch": 16, "image": 224}
    small = {"dim": 192, "depth": 6, "heads": 3, "patch": 4, "image": 32, "local": 16, "locals": 6}
    big, narrow = "ViT-S/16", "dim 192, depth 6, patch 4"
    if size == "tiny":
        vit.update(dim=64, depth=6, heads=1, patch=8, image=16)
        small.update(dim=32, depth=1, heads=1)
        big, narrow = "tiny", "smaller"
    vit_step = {**vit, "local": 96, "locals": 10}
    if size == "tiny":
        vit_step.update(local=8, locals=2, head_hidden=64, head_dim=32)
        small.update(head_hidden=64, head_dim=32)
    precisions = ("fp32", "bf16")
    if "step" in modes:
        for name, network, batch in ((big, vit_step, s["vit"]), (narrow, small, s["small"])):
            crops = f"2x{network['image']} + {network['locals']}x{network['local']}"
            for p in precisions:
                yield Row("step", f"step {name}, {crops}, batch {batch}, {p}",
                          options(**network, batch=batch, steps=s["steps"][0], precision=p), p, torch_ways(compiled))
    if "embed" in modes:
        for batch in s["embed"]:
            for p in precisions:
                peers = torch_ways(compiled)
                if p == "bf16":
                    ways = torch_ways(compiled, "--bf16-weights")
                    peers.update({f"{name}, bf16 weights": way for name, way in ways.items()})
                else:
                    peers["ONNX Runtime"] = [ORT]
                steps = s["steps"][2 if batch == 1 else 1]
                # a host that embeds packs its model's weights once, as compiled peers do
                yield Row("embed", f"embedding {big} at {vit['image']}, batch {batch}, {p}",
                          options(**vit, batch=batch, steps=steps, precision=p), p, peers, ["--packed"])
    if "coding-rate" in modes:
        for n in s["n"]:
            yield Row("coding-rate", f"coding rate and gradient, d 256, n {n}", options(n=n, d=256),
                      peers=torch_ways(compiled))
    if "augment" in modes:
        # the later --threads counts: the figure is that of a core
        peers = {"torchvision on PIL": [TORCH], "torchvision on tensors": [TORCH, "--tensors"]}
        sources = ((500, 375, 224, 96, 10), (32, 32, 32, 16, 6))
        for width, height, image, local, crops in sources[1:] if size == "tiny" else sources:
            yield Row("augment", f"augmentation {width}x{height} to 2x{image} + {crops}x{local}, one core",
                      options(width=width, height=height, image=image, local=local, locals=crops, threads=1),
                      peers=peers)
