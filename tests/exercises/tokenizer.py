"""Answers to the exercises of 01 · Tokenizer: wrong ones, each with its mistake, and right ones."""

WRONG = {
    "check_encode_text": [
        (
            """def encode_text(text, vocabulary):
    return [vocabulary[word] for word in split_words(text)]
""",
            "has a default",
        ),
        (
            """def encode_text(text, vocabulary):
    words = split_words(text)
    return [vocabulary[word] for word in words if word in vocabulary]
""",
            "must not vanish",
        ),
        (
            """def encode_text(text, vocabulary):
    return [vocabulary.setdefault(word, len(vocabulary)) for word in split_words(text)]
""",
            "no row in the embedding",
        ),
        (
            """def encode_text(text, vocabulary):
    return [vocabulary.get(word, 0) for word in text.lower().split()]
""",
            "leaves them glued",
        ),
        (
            """def encode_text(text, vocabulary):
    return [vocabulary.get(word, 0) for word in re.findall(r"\\w+|[^\\w\\s]", text.lower())]
""",
            "must stay one token",
        ),
        (
            """def encode_text(text, vocabulary):
    return [vocabulary.get(word, 0) for word in re.findall(r"\\w+|[^\\w\\s]", text)]
""",
            "the vocabulary is in lower case",
        ),
        (
            """def encode_text(text, vocabulary):
    return [vocabulary.get(word, "<unk>") for word in split_words(text)]
""",
            "an id is a number",
        ),
        (
            """def encode_text(text, vocabulary):
    return [vocabulary.get(word, 1) for word in split_words(text)]
""",
            "the id of <unk>",
        ),
    ],
    "check_opening_quotes": [
        (
            """def opening_quotes(tokens):
    return [token == '"' for token in tokens]
""",
            "the second of its pair",
        ),
        (
            """def opening_quotes(tokens):
    before = ["", *tokens[:-1]]
    return [token == '"' and last not in (",", ".", "!", "?") for last, token in zip(before, tokens)]
""",
            "the comma is no clue",
        ),
        (
            """def opening_quotes(tokens):
    after = [*tokens[1:], ""]
    return [token == '"' and following.isalnum() for token, following in zip(tokens, after)]
""",
            "although a word follows it",
        ),
        (
            """def opening_quotes(tokens):
    opened, sides = False, []
    for token in tokens:
        sides.append(token == '"' and not opened)
        if token == '"':
            opened = not opened
    return sides
""",
            "starts afresh",
        ),
        (
            """def opening_quotes(tokens):
    opened, sides = False, []
    for token in tokens:
        if token == '"':
            opened = not opened
        sides.append(opened)
    return sides
""",
            "the words inside the quotation",
        ),
        (
            """def opening_quotes(tokens):
    opened, sides = False, []
    for token in tokens:
        if token == '"':
            opened = not opened
            sides.append(opened)
    return sides
""",
            "answers came out",
        ),
    ],
    "check_merge_pair": [
        (
            """def merge_pair(pieces, pair):
    out, i = [], 0
    while i < len(pieces) - 1:
        if (pieces[i], pieces[i + 1]) == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(pieces[i])
            i += 1
    return out
""",
            "no right neighbour but must stay",
        ),
        (
            """def merge_pair(pieces, pair):
    for i in range(len(pieces) - 1):
        if (pieces[i], pieces[i + 1]) == pair:
            return [*pieces[:i], pair[0] + pair[1], *pieces[i + 2 :]]
    return list(pieces)
""",
            "only the first",
        ),
        (
            """def merge_pair(pieces, pair):
    out, i = [], 0
    while i < len(pieces):
        if sorted(pieces[i : i + 2]) == sorted(pair):
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(pieces[i])
            i += 1
    return out
""",
            "the order counts",
        ),
        (
            """def merge_pair(pieces, pair):
    out = []
    for i, piece in enumerate(pieces):
        if tuple(pieces[i : i + 2]) == pair:
            out.append(pair[0] + pair[1])
        elif i == 0 or tuple(pieces[i - 1 : i + 1]) != pair:
            out.append(piece)
    return out
""",
            "used up",
        ),
        (
            """def merge_pair(pieces, pair):
    i = 0
    while i < len(pieces) - 1:
        if (pieces[i], pieces[i + 1]) == pair:
            pieces[i : i + 2] = [pair[0] + pair[1]]
        i += 1
    return pieces
""",
            "build a new one",
        ),
        (
            """def merge_pair(pieces, pair):
    out, i = [], 0
    while i < len(pieces):
        if tuple(pieces[i : i + 2]) == pair:
            out.append(pair)
            i += 2
        else:
            out.append(pieces[i])
            i += 1
    return out
""",
            "join the two with +",
        ),
        (
            """def merge_pair(pieces, pair):
    joined = b"|" + b"|".join(pieces) + b"|"
    joined = joined.replace(pair[0] + b"|" + pair[1] + b"|", pair[0] + pair[1] + b"|")
    return [piece for piece in joined.split(b"|") if piece]
""",
            "the piece is th, not h",
        ),
    ],
    "check_encode_word": [
        (
            """def encode_word(word, rank):
    pieces, i = [], 0
    while i < len(word):
        end = max(j for j in range(i + 1, len(word) + 1) if word[i:j] in rank)
        pieces.append(word[i:end])
        i = end
    return pieces
""",
            "is not what merging gives",
        ),
        (
            """def encode_word(word, rank):
    pieces = [word[i : i + 1] for i in range(len(word))]
    while True:
        found = [i for i in range(len(pieces) - 1) if pieces[i] + pieces[i + 1] in rank]
        if not found:
            return pieces
        i = found[0]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
""",
            "not the leftmost",
        ),
        (
            """def encode_word(word, rank):
    pieces = [word[i : i + 1] for i in range(len(word))]
    found = [i for i in range(len(pieces) - 1) if pieces[i] + pieces[i + 1] in rank]
    if found:
        i = min(found, key=lambda i: rank[pieces[i] + pieces[i + 1]])
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces
""",
            "after one merge others become possible",
        ),
        (
            """def encode_word(word, rank):
    return [word] if word in rank else [word[i : i + 1] for i in range(len(word))]
""",
            "ll and l",
        ),
        (
            """def encode_word(word, rank):
    pieces = list(word)
    return pieces
""",
            "yours are numbers",
        ),
        (
            """def encode_word(word, rank):
    pieces = [word[i : i + 1] for i in range(len(word))]
    while len(pieces) > 1:
        i = min(range(len(pieces) - 1), key=lambda i: rank.get(pieces[i] + pieces[i + 1], 10**9))
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces
""",
            "is no piece of the list",
        ),
        (
            """def encode_word(word, rank):
    return [piece for piece in sorted(rank, key=len, reverse=True) if piece in word][:1]
""",
            "nothing may be lost",
        ),
    ],
    "check_entropy": [
        (
            """def entropy_and_perplexity(counts):
    p = [n / sum(counts) for n in counts if n]
    entropy = -sum(q * math.log2(q) for q in p)
    return entropy, 2**entropy
""",
            "that is in bits",
        ),
        (
            """def entropy_and_perplexity(counts):
    p = [n / sum(counts) for n in counts if n]
    entropy = sum(q * math.log(q) for q in p)
    return entropy, math.exp(entropy)
""",
            "the sum needs a minus",
        ),
        (
            """def entropy_and_perplexity(counts):
    p = [n / sum(counts) for n in counts if n]
    entropy = -sum(math.log(q) for q in p) / len(p)
    return entropy, math.exp(entropy)
""",
            "not an equal one",
        ),
        (
            """def entropy_and_perplexity(counts):
    p = [n / sum(counts) for n in counts]
    entropy = -sum(q * math.log(q) for q in p)
    return entropy, math.exp(entropy)
""",
            "0 ln 0 counts as 0",
        ),
        (
            """def entropy_and_perplexity(counts):
    p = [n / sum(counts) for n in counts if n]
    entropy = -sum(q * math.log(q) for q in p)
    return entropy, 2**entropy
""",
            "not a power of 2",
        ),
        (
            """def entropy_and_perplexity(counts):
    p = [n / max(counts) for n in counts if n]
    entropy = -sum(q * math.log(q) for q in p)
    return entropy, math.exp(entropy)
""",
            "sum to 1",
        ),
    ],
}

ALSO_RIGHT = {
    "check_encode_text": [
        """def encode_text(text, vocabulary):
    ids = []
    for word in split_words(text):
        if word in vocabulary:
            ids.append(vocabulary[word])
        else:
            ids.append(vocabulary["<unk>"])
    return ids
""",
        """def encode_text(text, vocabulary):
    from collections import defaultdict
    ids = defaultdict(lambda: vocabulary["<unk>"], vocabulary)
    return list(map(ids.__getitem__, split_words(text)))
""",
        """def encode_text(text, vocabulary):
    ids = []
    for part in re.split(r"(<unk>|<\\|endoftext\\|>)", text):
        words = [part] if part in ("<unk>", "<|endoftext|>") else re.findall(r"\\w+|[^\\w\\s]", part.lower())
        ids.extend(vocabulary.get(word, vocabulary["<unk>"]) for word in words)
    return tuple(ids)
""",
        """def encode_text(text, vocabulary):
    return np.array([vocabulary.get(word, vocabulary["<unk>"]) for word in split_words(text)], dtype=int)
""",
        """def encode_text(text, vocabulary):
    return torch.tensor([vocabulary.get(word, 0) for word in split_words(text)], dtype=torch.long)
""",
    ],
    "check_opening_quotes": [
        """def opening_quotes(tokens):
    seen, sides = 0, []
    for token in tokens:
        if token == "<|endoftext|>":
            seen = 0
        sides.append(token == '"' and seen % 2 == 0)
        seen += token == '"'
    return sides
""",
        """def opening_quotes(tokens):
    sides = [False] * len(tokens)
    for i, token in enumerate(tokens):
        story = tokens[:i][::-1]
        if "<|endoftext|>" in story:
            story = story[: story.index("<|endoftext|>")]
        sides[i] = token == '"' and story.count('"') % 2 == 0
    return sides
""",
        """def opening_quotes(tokens):
    def walk():
        is_open = 0
        for token in tokens:
            if token == '"':
                is_open = 1 - is_open
                yield is_open
            else:
                is_open *= token != "<|endoftext|>"
                yield 0
    return list(walk())
""",
    ],
    "check_merge_pair": [
        """def merge_pair(pieces, pair):
    out = []
    rest = iter(range(len(pieces)))
    for i in rest:
        if i + 1 < len(pieces) and pieces[i] == pair[0] and pieces[i + 1] == pair[1]:
            out += [pair[0] + pair[1]]
            next(rest)
        else:
            out += [pieces[i]]
    return out
""",
        """def merge_pair(pieces, pair):
    if len(pieces) < 2:
        return list(pieces)
    if (pieces[0], pieces[1]) == tuple(pair):
        return [b"".join(pair)] + merge_pair(pieces[2:], pair)
    return [pieces[0]] + merge_pair(pieces[1:], pair)
""",
        """def merge_pair(pieces, pair):
    out, fresh = [], False
    for piece in pieces:
        if out and not fresh and (out[-1], piece) == pair:
            out[-1] += piece
            fresh = True
        else:
            out.append(piece)
            fresh = False
    return out
""",
        """def merge_pair(pieces, pair):
    copy, i = pieces[:], 0
    while i + 1 < len(copy):
        if copy[i : i + 2] == list(pair):
            copy[i : i + 2] = [copy[i] + copy[i + 1]]
        i += 1
    return copy
""",
    ],
    "check_encode_word": [
        """def encode_word(word, rank):
    pieces = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in rank]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces = pieces[:i] + [pieces[i] + pieces[i + 1]] + pieces[i + 2 :]
""",
        """def encode_word(word, rank):
    pieces = [word[i : i + 1] for i in range(len(word))]
    for piece in sorted(rank, key=rank.get):
        out = []
        for part in pieces:
            if out and out[-1] + part == piece and len(out[-1]) < len(piece):
                out[-1] = piece
            else:
                out.append(part)
        pieces = out
    return pieces
""",
        """def encode_word(word, rank):
    if len(word) < 2:
        return [word] if word else []
    def step(pieces):
        best = min(range(len(pieces) - 1), key=lambda i: rank.get(pieces[i] + pieces[i + 1], math.inf), default=None)
        if best is None or pieces[best] + pieces[best + 1] not in rank:
            return pieces
        return step([*pieces[:best], pieces[best] + pieces[best + 1], *pieces[best + 2 :]])
    return tuple(step([bytes([b]) for b in word]))
""",
    ],
    "check_entropy": [
        """def entropy_and_perplexity(counts):
    p = torch.tensor([n for n in counts if n > 0], dtype=torch.float64)
    p = p / p.sum()
    entropy = -(p * p.log()).sum()
    return entropy.item(), entropy.exp().item()
""",
        """def entropy_and_perplexity(counts):
    n = np.array(counts, dtype=float)
    n = n[n > 0]
    entropy = np.log(n.sum()) - (n * np.log(n)).sum() / n.sum()
    return [entropy, np.exp(entropy)]
""",
        """def entropy_and_perplexity(counts):
    total, entropy = sum(counts), 0.0
    for n in counts:
        if n == 0:
            continue
        entropy += n / total * math.log(total / n)
    return entropy, math.e**entropy
""",
    ],
}
