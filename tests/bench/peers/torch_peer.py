#!/usr/bin/env python3
"""The work of simdino-bench in PyTorch 2, as fast as PyTorch does it: one thread pool, malloc that keeps its memory.

    torch_peer.py step|embed|coding_rate|augment|versions [the options of simdino-bench] [--compile]

The caller runs it with and without --compile (and other options) and takes the better. Prints one JSON object. Ends
with status 77 where a package is missing.
"""
import argparse
import contextlib
import copy
import glob
import json
import os
import random
import resource
import statistics
import sys
import time


def missing(what, error):
    print(f"{what} not installed ({sys.executable}: {error})")
    sys.exit(77)


def parse(modes):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("mode", choices=modes, type=lambda text: text.replace("-", "_"))
    numbers = {"dim": 384, "depth": 12, "heads": 0, "patch": 16, "image": 224, "local": 96, "locals": 10, "batch": 8,
               "head_hidden": 2048, "head_dim": 256, "n": 512, "d": 256, "width": 500, "height": 375, "steps": 5,
               "warmup": 2, "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else
               os.cpu_count()}
    for name, value in numbers.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--bf16-weights", action="store_true", help="embed: a model of bf16 instead of autocast")
    parser.add_argument("--tensors", action="store_true", help="augment: 8-bit tensors instead of PIL images")
    options = parser.parse_args()
    options.heads = options.heads or max(1, options.dim // 64)
    return options


def restart(variables):
    """Starts this program again where the environment is not yet so: libraries read these when they are loaded."""
    if any(os.environ.get(k) != v for k, v in variables.items()):
        os.execve(sys.executable, [sys.executable] + sys.argv, {**os.environ, **variables})


def tune(threads):
    variables = {k: str(threads) for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    if sys.platform == "linux":
        # else glibc returns large blocks after each use, and gets them page by page in the next step
        variables.update(MALLOC_MMAP_THRESHOLD_=str(32 << 20), MALLOC_TRIM_THRESHOLD_=str(64 << 30))
    restart(variables)


def tune_openblas():
    """For a PyTorch with the system's OpenBLAS (Debian's). With threads of its own beside OpenMP's that makes PyTorch
    two to four times as slow: its OpenMP build is taken, or the threads sleep while idle."""
    try:
        with open("/proc/self/maps") as maps:
            files = {line.split()[-1] for line in maps if "libopenblas" in line}
    except OSError:
        return
    for file in files:
        variables = {}
        if os.environ.get("SIMDINO_BENCH_CORETYPE"):  # what our side runs with, where OpenBLAS does not know the CPU
            variables["OPENBLAS_CORETYPE"] = os.environ["SIMDINO_BENCH_CORETYPE"]
        if "pthread" in os.path.realpath(file):
            other = glob.glob(os.path.join(os.path.dirname(os.path.realpath(file)), "..", "openblas-openmp"))
            variables.update({"LD_LIBRARY_PATH": other[0]} if other else {"OMP_WAIT_POLICY": "passive"})
        restart(variables)


if __name__ == "__main__":
    args = parse(("step", "embed", "coding_rate", "augment", "versions"))
    tune(1 if args.mode == "augment" else args.threads)
try:
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention  # since PyTorch 2
except ImportError as problem:
    missing("PyTorch 2", problem)

# ---- the network ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    fused = True  # ONNX Runtime knows attention by its products

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        n, t, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Images to the normalised class token."""

    def __init__(self, o):
        super().__init__()
        self.grid = o.image // o.patch
        self.patch = nn.Conv2d(3, o.dim, o.patch, o.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, o.dim))
        self.pos = nn.Parameter(torch.zeros(1, 1 + self.grid**2, o.dim))
        self.blocks = nn.ModuleList(Block(o.dim, o.heads) for _ in range(o.depth))
        self.norm = nn.LayerNorm(o.dim, eps=1e-6)
        initialize(self)

    def position(self, rows, columns):
        if (rows, columns) == (self.grid, self.grid):
            return self.pos
        grid = self.pos[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat((self.pos[:, :1], grid.flatten(2).transpose(1, 2)), 1)

    def forward(self, images):
        x = self.patch(images)
        pos = self.position(x.shape[2], x.shape[3])
        x = torch.cat((self.cls.expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)), 1) + pos
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


class Network(nn.Module):
    """Batches of crops, each of one size, to features of length 1: the transformer once a size, the head once."""

    def __init__(self, o):
        super().__init__()
        self.backbone = Transformer(o)
        self.head = nn.Sequential(nn.Linear(o.dim, o.head_hidden), nn.GELU(), nn.Linear(o.head_hidden, o.head_hidden),
                                  nn.GELU(), nn.Linear(o.head_hidden, o.head_dim))
        initialize(self.head)

    def forward(self, batches):
        return F.normalize(self.head(torch.cat([self.backbone(b) for b in batches])), dim=-1)


def initialize(module):
    for p in module.parameters():
        if p.dim() > 1:
            nn.init.trunc_normal_(p, std=0.02)
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.zeros_(m.bias)


def count(module):
    return sum(p.numel() for p in module.parameters())


def vit_flop(o, side):
    patches = (side // o.patch) ** 2
    tokens = patches + 1
    return 2 * patches * 3 * o.patch**2 * o.dim + o.depth * (24 * tokens * o.dim**2 + 4 * tokens**2 * o.dim)


# ---- loss and step --------------------------------------------------------------------------------------------------


def coding_rate(z, eps=0.05, smaller=True, cholesky=True):
    n, d = z.shape
    a, b = (z, z.T) if smaller and n < d else (z.T, z)
    m = torch.addmm(torch.eye(len(a)), a, b, alpha=d / (n * eps))
    return torch.linalg.cholesky(m).diagonal().log().sum() if cholesky else 0.5 * torch.logdet(m)


def simdino_loss(student, teacher, views):
    """Cosine of each global view of the teacher with each other view of the student; rate of their mean."""
    s, t = student.unflatten(0, (views, -1)), teacher.unflatten(0, (2, -1))
    n, d = s.shape[1:]
    compression = ((t.sum(0) * s.sum(0)).sum() - (t * s[:2]).sum()) / (n * (2 * views - 2))
    rate = sum(coding_rate((a + b) * 0.5) for a, b in zip(s, t)) * 0.5
    return -compression - (d + n) / (d * n) * rate


def step_of(o):
    student = Network(o)
    teacher = copy.deepcopy(student).requires_grad_(False)
    parameters, averages = list(student.parameters()), list(teacher.parameters())
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.04},
              {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]
    try:
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    except RuntimeError:  # before 2.4 not on the CPU
        optimizer = torch.optim.AdamW(groups, lr=1e-4)
    crops = [torch.randn(2 * o.batch, 3, o.image, o.image), torch.randn(o.locals * o.batch, 3, o.local, o.local)]
    crops = crops[:1] if o.locals == 0 else crops
    run_student, run_teacher = compiled(o, student), compiled(o, teacher)

    def step():
        with low_precision(o):  # one region, so that a weight is rounded once for both sizes of crops
            with torch.no_grad():
                targets = run_teacher(crops[:1])
            features = run_student(crops)
        loss = simdino_loss(features.float(), targets.float(), 2 + o.locals)
        optimizer.zero_grad()
        loss.backward()
        for p in parameters:
            scale = 3.0 / (float(torch.linalg.vector_norm(p.grad)) + 1e-6)
            if scale < 1.0:
                p.grad.mul_(scale)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1.0 - 0.996)
        return loss.item()

    h, p = o.head_hidden, o.head_dim
    head = 2 * (o.dim * h + h * h + h * p)
    whole, local = vit_flop(o, o.image) + head, vit_flop(o, o.local) + head
    forward = o.batch * (2 * whole + o.locals * local) + 4 * o.batch * p * min(o.batch, p)
    return step, 2 * o.batch * whole + 3 * forward, count(student)


def compiled(o, module):
    return torch.compile(module, dynamic=False) if o.compile else module


def low_precision(o):
    autocast = o.precision == "bf16" and not o.bf16_weights
    return torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()


# ---- augmentation ---------------------------------------------------------------------------------------------------


def augmentation(o):
    """The customary pipeline, with torchvision: on PIL images, or on tensors by its second generation."""
    try:
        from PIL import Image, ImageFilter
        if o.tensors:
            from torchvision.transforms import v2 as T
        else:
            from torchvision import transforms as T
    except ImportError as problem:
        missing("torchvision with PIL", problem)

    def blur(image):
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def pipeline(size, scale, blurred, solarized):
        to_float = [T.ToDtype(torch.float32, scale=True)] if o.tensors else [T.ToTensor()]
        kernel = min(13, size // 2 * 2 - 1)  # three standard deviations
        return T.Compose([
            T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC, antialias=True),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(kernel, (0.1, 2.0)) if o.tensors else T.Lambda(blur)], p=blurred),
            T.RandomSolarize(128, p=solarized),
            *to_float,
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    images = []
    for _ in range(8):  # smooth colours with some grain, as photographs have
        smooth = F.interpolate(torch.rand(1, 3, 12, 12), size=(o.height, o.width), mode="bilinear")[0]
        pixels = ((smooth + 0.04 * torch.randn(3, o.height, o.width)).clamp(0, 1) * 255).to(torch.uint8)
        images.append(pixels if o.tensors else Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    first, second = pipeline(o.image, (0.4, 1.0), 1.0, 0.0), pipeline(o.image, (0.4, 1.0), 0.1, 0.2)
    local = pipeline(o.local, (0.05, 0.4), 0.5, 0.0)

    def round_of_images():
        for image in images:
            yield [first(image), second(image)] + [local(image) for _ in range(o.locals)]

    return lambda: sum(1 for _ in round_of_images())


# ---- measuring ------------------------------------------------------------------------------------------------------


def times_of(o, function, seconds=0.0):
    """Seconds of --steps calls, and on until so many seconds have passed."""
    for _ in range(o.warmup):
        function()
    times = []
    while len(times) < o.steps or (sum(times) < seconds and len(times) < 1000):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def peak_mib():
    try:  # getrusage begins with what the program that started this one had held
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)


def report(o, times, flop=0, **more):
    """times: of the work and, where one call does more than one piece, divided already."""
    median = statistics.median(times)
    print(json.dumps({"mode": o.mode, "ms": 1e3 * median, "ms_fastest": 1e3 * min(times), "gflop": 1e-9 * flop,
                      "gflops": 1e-9 * flop / median, "peak_rss_mib": peak_mib(), "threads": o.threads,
                      "precision": o.precision, **more, "versions": versions()}))


def versions():
    found = {"Python": sys.version.split()[0], "PyTorch": torch.__version__}
    for module, name in (("torchvision", "torchvision"), ("onnxruntime", "ONNX Runtime")):
        if module in sys.modules:
            found[name] = sys.modules[module].__version__
    return found


def main(o):
    tune_openblas()
    torch.set_num_threads(1 if o.mode == "augment" else o.threads)
    torch.manual_seed(1)
    random.seed(1)
    if o.mode == "versions":
        print(json.dumps(versions()))
    elif o.mode == "step":
        step, flop, parameters = step_of(o)
        report(o, times_of(o, step), flop, parameters=parameters, loss=step())
    elif o.mode == "embed":
        dtype = torch.bfloat16 if o.bf16_weights else torch.float32
        model, images = Transformer(o).eval().to(dtype), torch.randn(o.batch, 3, o.image, o.image).to(dtype)
        if o.compile:  # weights are constants in inference
            from torch._inductor import config as inductor
            inductor.freezing = True
        run = compiled(o, model)
        with torch.inference_mode(), low_precision(o):
            report(o, times_of(o, lambda: run(images)), o.batch * vit_flop(o, o.image), parameters=count(model))
    elif o.mode == "coding_rate":
        z = F.normalize(torch.randn(o.n, o.d), dim=-1).requires_grad_()

        def one(function):
            z.grad = None
            function(z).backward()

        best = None
        for smaller in (True, False):
            for cholesky in (True, False):
                rate = compiled(o, lambda x, s=smaller, c=cholesky: coding_rate(x, smaller=s, cholesky=c))
                times = times_of(o, lambda f=rate: one(f), 1.0)
                best = min(best or times, times, key=statistics.median)
        side = min(o.n, o.d)
        report(o, best, 3 * o.n * o.d * side + side**3)  # the least work: a triangle of the Gram matrix
    else:
        augment = augmentation(o)
        images = augment()
        report(o, [t / images for t in times_of(o, augment)])


if __name__ == "__main__":
    main(args)
