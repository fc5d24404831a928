"""Answers to the exercises of 01 · Tokenizer as a reader may give them, each with a mistake that its check names."""

WRONG = {
    "check_encode": [
        (
            """def encode_words(text, vocabulary):
    return [vocabulary[word] for word in re.findall(r"\\w+|[^\\w\\s]", text.lower())]
""",
            "has a default",
        ),
        (
            """def encode_words(text, vocabulary):
    words = re.findall(r"\\w+|[^\\w\\s]", text.lower())
    return [vocabulary[word] for word in words if word in vocabulary]
""",
            "must not vanish",
        ),
        (
            """def encode_words(text, vocabulary):
    return [vocabulary.setdefault(word, len(vocabulary)) for word in re.findall(r"\\w+|[^\\w\\s]", text.lower())]
""",
            "no row in the embedding",
        ),
        (
            """def encode_words(text, vocabulary):
    return [vocabulary.get(word, 0) for word in text.lower().split()]
""",
            "leaves them glued",
        ),
        (
            """def encode_words(text, vocabulary):
    return [vocabulary.get(word, 0) for word in re.findall(r"\\w+|[^\\w\\s]", text)]
""",
            "the vocabulary is in lower case",
        ),
        (
            """def encode_words(text, vocabulary):
    return [vocabulary.get(word, "<unk>") for word in re.findall(r"\\w+|[^\\w\\s]", text.lower())]
""",
            "an id is a number",
        ),
        (
            """def encode_words(text, vocabulary):
    return [vocabulary.get(word, 1) for word in re.findall(r"\\w+|[^\\w\\s]", text.lower())]
""",
            "the id of <unk>",
        ),
    ],
    "check_quotes": [
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
            "a sign is no clue",
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
    "check_merge": [
        (
            """def merge(ids, pair, new):
    out, i = [], 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out
""",
            "no right neighbour but must stay",
        ),
        (
            """def merge(ids, pair, new):
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            return [*ids[:i], new, *ids[i + 2 :]]
    return list(ids)
""",
            "only the first",
        ),
        (
            """def merge(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if sorted(ids[i : i + 2]) == sorted(pair):
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out
""",
            "the order counts",
        ),
        (
            """def merge(ids, pair, new):
    out = []
    for i, token in enumerate(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
        elif i == 0 or tuple(ids[i - 1 : i + 1]) != pair:
            out.append(token)
    return out
""",
            "used up",
        ),
        (
            """def merge(ids, pair, new):
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new]
        i += 1
    return ids
""",
            "build a new one",
        ),
    ],
}
