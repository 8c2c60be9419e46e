#!/usr/bin/env python3
"""What `simdino pretrain` does to CIFAR-10, in PyTorch 2 and torchvision: the same network, recipe and k-NN.

    torch_pretrain.py --data FOLDER [--steps 2000 ...]      FOLDER: data_batch_*.bin and test_batch.bin

Prints one JSON object: seconds of training, augmentation and loading included, and the accuracy. Ends with status 77
where a package is missing.
"""
import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch_peer as peer

WORKERS = 2


def parse():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    numbers = {"steps": 2000, "batch": 32, "dim": 96, "depth": 4, "heads": 3, "patch": 8, "image": 32, "head_hidden": 256,
               "head_dim": 64, "seed": 0, "threads": 2, "workers": WORKERS, "k": 20, "train_limit": 50000,
               "test_limit": 10000}
    for name, value in numbers.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    reals = {"lr": 0.0005, "min_lr": 1e-5, "momentum": 0.99, "coeff": 5.0}
    for name, value in reals.items():
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=value)
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


args = parse() if __name__ == "__main__" else None
if args:
    peer.tune(args.threads)
try:
    import numpy as np
    import torch
    from PIL import Image
    from torch.nn import functional as F
    from torchvision import transforms as T
except ImportError as problem:
    peer.missing("PyTorch 2 with torchvision, PIL and NumPy", problem)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(files, limit):
    raw = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in sorted(files)])[:limit]
    return np.ascontiguousarray(raw[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), torch.from_numpy(raw[:, 0].astype(int))


class Views(torch.utils.data.Dataset):
    """Two crops of an image, with the small colour recipe."""

    def __init__(self, images):
        self.images = images
        self.augment = T.Compose([
            T.RandomResizedCrop(32, scale=(0.4, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.1),
            T.ToTensor(),
            T.Normalize(MEAN, STD)])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = Image.fromarray(self.images[i])
        return self.augment(image), self.augment(image)


def cosine(start, end, step, steps):
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * step / steps))


def loss_of(student, teacher, coeff):
    """torch_peer's loss with two views, its compression `coeff` times."""
    s, t = student.unflatten(0, (2, -1)), teacher.unflatten(0, (2, -1))
    n, d = s.shape[1:]
    compression = ((s[0] * t[1]).sum() + (s[1] * t[0]).sum()) / (2 * n)
    rate = 0.5 * sum(peer.coding_rate((a + b) * 0.5) for a, b in zip(s, t))
    return -coeff * compression - (d + n) / (d * n) * rate


def batches(images, o):
    loader = torch.utils.data.DataLoader(Views(images), o.batch, shuffle=True, drop_last=True, num_workers=o.workers,
                                         persistent_workers=o.workers > 0, prefetch_factor=4 if o.workers else None)
    while True:
        yield from loader


def train(o, images):
    student = peer.Network(o)
    teacher = copy.deepcopy(student).requires_grad_(False)
    parameters, averages = list(student.parameters()), list(teacher.parameters())
    groups = [{"params": [p for p in parameters if p.dim() > 1]}, {"params": [p for p in parameters if p.dim() <= 1]}]
    optimizer = torch.optim.AdamW(groups, lr=o.lr, weight_decay=0.0, fused=True)
    run_student, run_teacher = (torch.compile(m, dynamic=False) if o.compile else m for m in (student, teacher))
    warmup, data = max(1, o.steps // 10), batches(images, o)
    for step in range(o.steps):
        lr = o.lr * step / warmup if step < warmup else cosine(o.lr, o.min_lr, step - warmup, o.steps - warmup)
        for group, decay in zip(optimizer.param_groups, (cosine(0.04, 0.1, step, o.steps), 0.0)):
            group.update(lr=lr, weight_decay=decay)
        crops = [torch.cat(next(data))]
        with torch.no_grad():
            targets = run_teacher(crops)
        loss = loss_of(run_student(crops), targets, o.coeff)
        optimizer.zero_grad()
        loss.backward()
        for p in parameters:
            p.grad.mul_((3.0 / (torch.linalg.vector_norm(p.grad) + 1e-6)).clamp(max=1.0))
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1.0 - cosine(o.momentum, 1.0, step, o.steps))
    return teacher.backbone, loss.item()


@torch.inference_mode()
def embed(network, images):
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    rows = [network((torch.from_numpy(part).permute(0, 3, 1, 2) / 255.0 - mean) / std)
            for part in np.array_split(images, max(1, len(images) // 256))]
    return torch.cat(rows)


@torch.inference_mode()
def accuracy(network, o, train_set, test_set):
    """Weighted k-NN of centred features, temperature 0.07."""
    base, queries = embed(network, train_set[0]), embed(network, test_set[0])
    centre = base.mean(0)
    base, queries = F.normalize(base - centre, dim=-1), F.normalize(queries - centre, dim=-1)
    similar, index = (queries @ base.T).topk(o.k, dim=1)
    votes = torch.zeros(len(queries), 10).scatter_add_(1, train_set[1][index], (similar / 0.07).exp())
    return 100.0 * (votes.argmax(1) == test_set[1]).float().mean().item()


def main(o):
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    train_set = read(o.data.glob("data_batch_*.bin"), o.train_limit)
    test_set = read(o.data.glob("test_batch.bin"), o.test_limit)
    start = time.perf_counter()
    network, loss = train(o, train_set[0])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "images_per_second": o.steps * o.batch / seconds, "loss": loss,
                      "accuracy": accuracy(network.eval(), o, train_set, test_set), "versions": peer.versions()}))


if __name__ == "__main__":
    main(args)
