"""Lines of metrics.jsonl made from a few numbers."""

NUM_FIRST = 2
EXCESS = "running_normalized_excess"


def make_lines(member, level, second, seed=0):
    """A network's lines: two epochs of pretraining, then (raw, excess, test loss or None) each.

    The first phase is lower in everything than the second, and must not count.
    """
    lines = []
    for step, (raw, excess, test) in enumerate([(1e-9, -9.0, 1e-9)] * NUM_FIRST + second, 1):
        is_first = step <= NUM_FIRST
        line = {"member": member, "level": level, "seed": seed, "group": 0, "step": step}
        line |= {"phase": "pretrain" if is_first else "train", "family": "pretrain"}
        line |= {"epoch": step if is_first else step - NUM_FIRST, "running_loss": raw}
        line |= {"running_error": 0.1, EXCESS: excess, "train_loss": None}
        lines.append(line | ({} if test is None else {"test_loss": test, "test_error": test / 4}))
    return lines


# Raw loss falls to the end, test loss is least at 2, the normalized loss at 3.
BETTER = [(0.9, -0.1, 1.5), (0.5, -0.3, 1.2), (0.3, -0.4, 1.3), (0.1, -0.2, 1.9)]
