"""A small event simulation of pipeline schedules: operations in order, each when its stage and its inputs are ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Operation = tuple[str, int, int]  # kind (F, B, W), virtual stage, micro batch


def run(
    orders: Sequence[Sequence[Operation]], seconds: Callable[[str, int], float], virtual_stages: int, stages: int
) -> float:
    """Makespan when every stage executes its operations in the given order."""
    done: dict[Operation, float] = {}
    free = [0.0] * stages
    position = [0] * stages
    while any(position[stage] < len(orders[stage]) for stage in range(stages)):
        progressed = False
        for stage in range(stages):
            while position[stage] < len(orders[stage]):
                operation = orders[stage][position[stage]]
                inputs = _inputs(operation, virtual_stages)
                if any(needed not in done for needed in inputs):
                    break
                start = max([free[stage], *(done[needed] for needed in inputs)])
                done[operation] = free[stage] = start + seconds(operation[0], operation[1])
                position[stage] += 1
                progressed = True
        if not progressed:
            raise RuntimeError("the schedule deadlocks")
    return max(free)


def _inputs(operation: Operation, virtual_stages: int) -> list[Operation]:
    kind, virtual, micro = operation
    if kind == "F":
        return [("F", virtual - 1, micro)] if virtual else []
    if kind == "W":
        return [("B", virtual, micro)]
    after = [("B", virtual + 1, micro)] if virtual + 1 < virtual_stages else []
    return [("F", virtual, micro), *after]


def interleaved(stages: int, virtual: int, micro_batches: int) -> list[list[Operation]]:
    """Megatron-LM's 1F1B order (interleaved where ``virtual`` > 1)."""
    orders = []
    for stage in range(stages):
        forward, backward = [], []
        for start in range(0, micro_batches, stages):
            members = range(start, min(start + stages, micro_batches))
            forward += [(chunk, micro) for chunk in range(virtual) for micro in members]
            backward += [(chunk, micro) for chunk in reversed(range(virtual)) for micro in members]
        total = len(forward)
        warmup = (stages - stage - 1) * 2 + (virtual - 1) * stages if virtual > 1 else stages - stage - 1
        warmup = min(warmup, total)
        order: list[Operation] = [("F", chunk * stages + stage, micro) for chunk, micro in forward[:warmup]]
        for index in range(total - warmup):
            chunk, micro = forward[warmup + index]
            order.append(("F", chunk * stages + stage, micro))
            chunk, micro = backward[index]
            order.append(("B", chunk * stages + stage, micro))
        order += [("B", chunk * stages + stage, micro) for chunk, micro in backward[total - warmup :]]
        orders.append(order)
    return orders


def greedy(stages: int, micro_batches: int, seconds: Callable[[str], float], streams: int = 1) -> float:
    """Makespan of a schedule that splits backward and fills gaps with weight gradients.

    With one stream, stage ``d`` holds virtual stage ``d`` and keeps at most ``stages`` micro batches in flight
    (ZB-H1). With two, it also holds the mirrored stage of a stream that enters at the other end (DualPipe), half of the
    micro batches each, and keeps at most ``stages + 1`` in flight.
    """
    each = micro_batches // streams
    done: dict[tuple[str, int, int, int], float] = {}
    free = [0.0] * stages
    forwarded = {(device, stream): 0 for device in range(stages) for stream in range(streams)}
    backed, weighed = dict(forwarded), dict(forwarded)
    finished = 0
    while finished < 3 * each * streams * stages:
        best: tuple[float, int, int, str, int, int] | None = None
        for device in range(stages):
            flying = sum(forwarded[device, s] - weighed[device, s] for s in range(streams))
            most = stages if streams == 1 else stages + 1
            for stream in range(streams):
                place = device if stream == 0 else stages - 1 - device
                options = (
                    ("B", backed[device, stream], 0),
                    ("F", forwarded[device, stream], 1 if flying < most else None),
                    ("W", weighed[device, stream], 2),
                )
                for kind, micro, rank in options:
                    if rank is None or micro >= each:
                        continue
                    if kind == "W" and weighed[device, stream] >= backed[device, stream]:
                        continue
                    needs = {
                        "F": [("F", place - 1)] if place else [],
                        "B": [("F", place), *([("B", place + 1)] if place + 1 < stages else [])],
                        "W": [("B", place)],
                    }[kind]
                    keys = [(k, v, micro, stream) for k, v in needs]
                    if any(key not in done for key in keys):
                        continue
                    start = max([free[device], *(done[key] for key in keys)])
                    candidate = (start, rank, device, kind, micro, stream)
                    if best is None or candidate < best:
                        best = candidate
        if best is None:
            raise RuntimeError("the schedule deadlocks")
        start, _, device, kind, micro, stream = best
        place = device if stream == 0 else stages - 1 - device
        done[kind, place, micro, stream] = free[device] = start + seconds(kind)
        counter = {"F": forwarded, "B": backed, "W": weighed}[kind]
        counter[device, stream] += 1
        finished += 1
    return max(free)
