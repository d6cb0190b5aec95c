"""The PyTorch contenders, on a GPU if PyTorch sees one, else on the CPU."""

import time
from collections.abc import Callable

import torch

from benchmarks.synthetic import make_data
from benchmarks.timing import Prepared
from benchmarks.torch_nets import NETS, ConvNet3, make_step, make_vmap_step, normalize_net

IMAGE_SHAPE = (32, 32, 3)


def choose_device() -> torch.device:
    """Return the device of the PyTorch contenders."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_train(model: str, members: int, batch_size: int, steps: int, way: str) -> Prepared:
    """Prepare `steps` steps of every member, with PyTorch's default number of threads.

    Args:
      model: "convnet3" or "convnet5".
      members: number of networks, trained one after another except for "vmap".
      batch_size: examples per step.
      steps: steps per network and call.
      way: "eager", "channels_last", "vmap", "cuda_graph" or "compile".
    """
    torch.manual_seed(0)
    device = choose_device()
    nets = [NETS[model]().to(device) for _ in range(members)]
    images, labels = make_data(2 * batch_size, IMAGE_SHAPE)
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(labels).long().to(device)
    if way == "channels_last":
        nets = [net.to(memory_format=torch.channels_last) for net in nets]
    else:
        images = images.contiguous()
    index = torch.randperm(len(labels), device=device)[:batch_size]

    compile_s = None
    if way == "vmap":
        step_fns = [make_vmap_step(nets, images, labels)]
    elif way == "compile":
        step_fns = [make_step(torch.compile(net), images, labels) for net in nets]
    else:
        step_fns = [make_step(net, images, labels) for net in nets]
    if way == "cuda_graph":
        step_fns = [_capture(step, index) for step in step_fns]

    def call():
        for _ in range(steps):
            index.copy_(torch.randperm(len(labels), device=device)[:batch_size])
            losses = [step(index) for step in step_fns]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return losses

    if way == "compile":
        started = time.perf_counter()
        call()
        compile_s = time.perf_counter() - started
    return Prepared(call, members * steps, compile_s)


def prepare_normalize(members: int, repeats: int) -> Prepared:
    """Prepare the normalization of the 3-layer net, one network after another."""
    nets = [ConvNet3().to(choose_device()) for _ in range(members)]

    def call():
        for _ in range(repeats):
            normalized = [normalize_net(net) for net in nets]
        if choose_device().type == "cuda":
            torch.cuda.synchronize()
        return normalized

    return Prepared(call, members * repeats, None)


def _capture(step: Callable, index: torch.Tensor) -> Callable:
    """Capture the step as a CUDA graph that reads `index` in place."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # warm-up that PyTorch requires before a capture
            step(index)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(index)

    def replay(_):
        graph.replay()
        return loss

    return replay
