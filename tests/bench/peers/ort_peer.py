#!/usr/bin/env python3
"""The embedding of torch_peer.py in ONNX Runtime: fp32, all graph optimisations, one thread pool.

    ort_peer.py embed|versions [the options of simdino-bench]

Prints one JSON object. Ends with status 77 where a package is missing. Its memory includes PyTorch, which exports the
network.
"""
import json
import os
import sys
import tempfile
import warnings

import torch_peer as peer

if __name__ == "__main__":
    args = peer.parse(("embed", "versions"))
    try:
        import onnx  # noqa: F401  the exporter uses it
        import onnxruntime
    except ImportError as problem:
        peer.missing("ONNX Runtime", problem)
torch = peer.torch


def export(model, images, path):
    """By tracing: the fusions of layer norm, GELU and attention know the graph that this gives."""
    peer.Block.fused = False
    warnings.simplefilter("ignore")
    names = {"input_names": ["images"], "output_names": ["embedding"]}
    torch.onnx.export(model, (images,), path, opset_version=17, dynamo=False, **names)


def main(o):
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    if o.mode == "versions":
        print(json.dumps(peer.versions()))
        return
    model, images = peer.Transformer(o).eval(), torch.randn(o.batch, 3, o.image, o.image)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = o.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = model(images)
        path = os.path.join(folder, "network.onnx")
        export(model, images, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    error = float((torch.from_numpy(session.run(None, feed)[0]) - expected).abs().max())
    if not error < 1e-3:
        sys.exit(f"ONNX Runtime's embedding differs from PyTorch's by {error:g}")
    times = peer.times_of(o, lambda: session.run(None, feed))
    peer.report(o, times, o.batch * peer.vit_flop(o, o.image), parameters=peer.count(model), difference=error)


if __name__ == "__main__":
    main(args)
