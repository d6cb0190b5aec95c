"""What TensorBoard itself reads from a run's event files, and what it should read."""

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normjax.results import tensorboard


def scalars(folder):
    """{(network, name, step): value} of all event files; a value that is there twice fails."""
    found = {}
    for path in folder.glob(f"{tensorboard.FOLDER}/*"):
        events = EventAccumulator(str(path)).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                key = path.name, name, event.step
                assert key not in found
                found[key] = event.value
    return found


def expected(lines):
    running = ("loss", "error", "normalized_excess", "log_product_norm")
    names = [f"running_{name}" for name in running]
    names += ["diverged_at", "train_loss", "train_error", "test_loss", "test_error"]
    return {
        (tensorboard.network_name(line), name, line["step"]): float(np.float32(line[name]))
        for line in lines
        for name in names
        if line.get(name) is not None
    }
