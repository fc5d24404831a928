"""Answers to the exercises of 08_scaling: wrong ones, each with words of the message that names its mistake, and right
ones that were written another way."""

OWNERS = "orthogonalise(whole) if ranks.rank == owner else torch.zeros_like(whole)"
MINE = "ranks.sum(result)[first:first + len(rows)]"


def _mean(body: str) -> str:
    return f"def global_mean(gradient, n, all_reduce):\n    return {body}"


def _share(order: str, end: str = "owner", least: str = "load.index(min(load))") -> str:
    return f"""def share_out(work, n_ranks):
    owner, load = [0] * len(work), [0] * n_ranks
    for i in {order}:
        owner[i] = {least}
        load[owner[i]] += work[i]
    return {end}"""


def _rows(body: str) -> str:
    return f"import math\ndef rows_held(n_rows, rank, size):\n    return {body}"


def _muon(end: str, whole: str = "ranks.sum(padded)", result: str = OWNERS, padded: str = "torch.zeros") -> str:
    return f"""def orthogonalise_rows(rows, first, n_rows, owner, orthogonalise, ranks):
    padded = {padded}(n_rows, rows.shape[1])
    padded[first:first + len(rows)] = rows
    whole = {whole}
    result = {result}
    return {end}"""


def _bytes(ddp: str, fsdp: str) -> str:
    return f"def wire_bytes(n_bytes, n, form):\n    return {ddp} if form == 'ddp' else {fsdp}"


LARGEST_FIRST = "sorted(range(len(work)), key=lambda i: -work[i])"
RIGHT_DDP, RIGHT_FSDP = "2 * (n - 1) / n * n_bytes", "3 * (n - 1) / n * n_bytes"

WRONG = {
    "check_global_mean": [
        (_mean("gradient"), "nothing is exchanged"),
        (_mean("all_reduce(gradient * n)"), "the sum over all windows"),
        (_mean("all_reduce(gradient)"), "the sum of the processes' means"),
        (_mean("all_reduce(gradient * n) / n"), "this process' own n"),
        (_mean("all_reduce(gradient) / all_reduce(1)"), "mean of the means"),
        (_mean("all_reduce(gradient * n) / all_reduce(n) if n > 1 else gradient"), "never comes"),
        (_mean("(all_reduce(gradient * n) / all_reduce(n)).sum()"), "the shape must be"),
    ],
    "check_share_out": [
        (_share("range(len(work))", least="i % n_ranks"), "take turns"),
        (_share("sorted(range(len(work)), key=lambda i: work[i])"), "comes late"),
        (_share("range(len(work))", least="0"), "all go to process 0"),
        (_share(LARGEST_FIRST, end=f"[owner[i] for i in {LARGEST_FIRST}]"), "in the order of the sorted"),
        (_share(LARGEST_FIRST, end="load"), "need 4 owners"),
        ("import random\n" + _share("range(len(work))", least="random.randrange(n_ranks)"), "asked again"),
        (_share(LARGEST_FIRST, end="[o + 1 for o in owner]"), "the numbers 0 to 1"),
        (_share(LARGEST_FIRST, end="None"), "returns None"),
    ],
    "check_rows_held": [
        (_rows("rank * (n_rows // size), (rank + 1) * (n_rows // size)"), "leave a rest"),
        (_rows("rank * math.ceil(n_rows / size), (rank + 1) * math.ceil(n_rows / size)"), "behind the last row"),
        (_rows("n_rows * rank // size, n_rows * (rank + 1) // size"), "full blocks first"),
        (_rows("0, n_rows"), "held twice"),
        (_rows("n_rows - (rank + 1) * n_rows // size, n_rows - rank * n_rows // size"), "order of the ranks"),
    ],
    "check_orthogonalise_rows": [
        (_muon(MINE, whole="rows", result="orthogonalise(rows)"), "process 0 orthogonalises (2, 5) numbers"),
        (_muon(MINE, result="orthogonalise(whole) / ranks.size"), "the owner is 1 alone"),
        (_muon("result[first:first + len(rows)]"), "does the result come to all"),
        (_muon("ranks.sum(result)"), "the whole matrix, a process keeps"),
        (_muon(MINE, whole="padded"), "is not the matrix"),
        (_muon("(ranks.sum(result) if ranks.rank == owner else result)[first:first + len(rows)]"), "never comes"),
        (_muon(MINE, result="torch.zeros_like(whole)"), "nobody calls"),
        (_muon(MINE, result=OWNERS.replace("(whole)", "(whole) + 0 * orthogonalise(whole)", 1)), "same matrix 2 times"),
    ],
    "check_wire_bytes": [
        (_bytes("2 * n_bytes", RIGHT_FSDP), "alone sends nothing: (N-1)/N"),
        (_bytes(RIGHT_DDP, "3 * n_bytes"), "under fsdp either"),
        (_bytes("2 * (n - 1) * n_bytes", RIGHT_FSDP), "to each of the others"),
        (_bytes("(n - 1) / n * n_bytes", RIGHT_FSDP), "two passes round the ring"),
        (_bytes("2 * n_bytes * (n > 1)", RIGHT_FSDP), "its own piece need not travel"),
        (_bytes(RIGHT_DDP, RIGHT_DDP), "put together a second time"),
        (_bytes(RIGHT_DDP, "4 * (n - 1) / n * n_bytes"), "a reduce-scatter is one pass"),
        (_bytes(RIGHT_DDP, "(n - 1) / n * n_bytes"), "you give 750"),
    ],
}  # fmt: skip

ALSO_RIGHT = {
    "check_global_mean": [
        """def global_mean(gradient, n, all_reduce):
    total = all_reduce(torch.tensor(float(n)))
    return all_reduce(gradient * (n / total))""",
        """def global_mean(gradient, n, all_reduce):
    both = all_reduce(torch.cat([gradient * n, torch.tensor([float(n)])]))
    return both[:-1] / both[-1]""",
        """def global_mean(gradient, n, all_reduce):
    windows = int(all_reduce(n))
    gradient *= n
    return torch.stack([all_reduce(g) for g in gradient]) / windows""",
    ],
    "check_share_out": [
        """import heapq
def share_out(work, n_ranks):
    heap, owner = [(0, rank) for rank in range(n_ranks)], {}
    for i, w in sorted(enumerate(work), key=lambda pair: pair[1], reverse=True):
        load, rank = heapq.heappop(heap)
        owner[i] = rank
        heapq.heappush(heap, (load + w, rank))
    return [owner[i] for i in range(len(work))]""",
        """def share_out(work, n_ranks):
    load = torch.zeros(n_ranks)
    owner = torch.zeros(len(work), dtype=torch.long)
    for i in torch.tensor(work).argsort(descending=True, stable=True):
        owner[i] = load.argmin()
        load[owner[i]] += work[i]
    return owner""",
        _share(
            "sorted(range(len(work)), key=lambda i: (-work[i], -i))",
            least="min(range(n_ranks), key=lambda rank: (load[rank], -rank))",
        ),
    ],
    "check_rows_held": [
        """def rows_held(n_rows, rank, size):
    blocks = torch.arange(n_rows).chunk(size)
    if rank >= len(blocks):
        return n_rows, n_rows
    return blocks[rank][0], blocks[rank][-1] + 1""",
        _rows("slice(*(min(n_rows, i * math.ceil(n_rows / size)) for i in (rank, rank + 1)))"),
        """def rows_held(n_rows, rank, size):
    each = (n_rows + size - 1) // size
    return rank * each, min((rank + 1) * each, n_rows)""",
    ],
    "check_orthogonalise_rows": [
        """def orthogonalise_rows(rows, first, n_rows, owner, orthogonalise, ranks):
    r, d = rows.shape
    whole = ranks.sum(torch.nn.functional.pad(rows.double(), (0, 0, first, n_rows - first - r))).float()
    done = 0 * whole
    if owner == ranks.rank:
        done += orthogonalise(whole)
    return ranks.sum(done).narrow(0, first, r)""",
        """def orthogonalise_rows(rows, first, n_rows, owner, orthogonalise, ranks):
    place = torch.zeros(n_rows, len(rows))
    for i in range(len(rows)):
        place[first + i, i] = 1
    whole = ranks.sum(place @ rows)
    result = [orthogonalise(whole)] if ranks.rank == owner else []
    return place.T @ ranks.sum(sum(result, torch.zeros(n_rows, rows.shape[1])))""",
        """def orthogonalise_rows(rows, first, n_rows, owner, orthogonalise, ranks):
    whole = []
    for i in range(n_rows):
        mine = first <= i < first + len(rows)
        whole.append(ranks.sum(rows[i - first] if mine else torch.zeros(rows.shape[1])))
    whole = torch.stack(whole)
    result = ranks.sum(orthogonalise(whole) * 1.0) if ranks.rank == owner else ranks.sum(torch.zeros_like(whole))
    return result[range(first, first + len(rows))]""",
    ],
    "check_wire_bytes": [
        """def wire_bytes(n_bytes, n, form):
    one_pass = n_bytes - n_bytes / n
    return one_pass + one_pass + (one_pass if form == "fsdp" else 0)""",
        """def wire_bytes(n_bytes, n, form):
    sent = 0
    for _ in range(2 if form == "ddp" else 3):
        for _ in range(n - 1):
            sent += n_bytes / n
    return torch.tensor(sent, dtype=torch.float64)""",
        _bytes("n_bytes * (2 - 2 / n)", "n_bytes * (3 - 3 / n)"),
    ],
}  # fmt: skip
