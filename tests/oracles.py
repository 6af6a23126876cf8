"""Slow answers to memory tasks, worked out from the tokens alone, one sequence at a time."""

import numpy as np

from retain.config import IGNORE
from retain.data.tasks.recall import MQAR, Copy, KeysValues, Retrieval
from retain.data.tasks.tracking import Dyck, Modular, Parity, Permutations, Stack


def oracle(task, tokens):
    """The targets (B, T + 1) of tokens (B, T)."""
    targets = np.full((len(tokens), tokens.shape[1] + 1), IGNORE)
    answer = next(function for kind, function in ANSWERS.items() if isinstance(task, kind))
    for row, answers in zip(tokens.tolist(), targets, strict=True):
        answer(task, row, answers)
    return targets


def answer_retrieval(task, row, answers):
    answers[-1] = next(token - task.symbols for token in row if token >= task.symbols)


def answer_copy(task, row, answers):
    string = [token for token in row if token < task.symbols]
    after = row.index(task.symbols + 1) + 1
    answers[after : after + len(string)] = string[::-1] if task.reverse else string


def answer_keys_values(task, row, answers):
    length = task.string_len
    start = row.index(task.symbols + 1) + 1
    asked = row[start : start + length]
    for i in range(0, 2 * length * task.pairs, 2 * length):
        if row[i : i + length] == asked:
            answers[-length:] = row[i + length : i + 2 * length]


def answer_mqar(task, row, answers):
    value_of = dict(zip(row[: 2 * task.pairs : 2], row[1 : 2 * task.pairs : 2], strict=True))
    for t in range(2 * task.pairs, len(row)):
        answers[t + 1] = value_of.get(row[t], IGNORE)


def answer_stack(task, row, answers):
    stack = []
    for t, token in enumerate(row):
        if token == task.symbols:
            answers[t + 1] = stack.pop()
        else:
            stack.append(token)


def answer_dyck(task, row, answers):
    opened = []
    for t, token in enumerate(row):
        if token < task.symbols:
            opened.append(token)
        else:
            assert opened.pop() == token - task.symbols, f"the bracket at {t} closes one of another kind"
        answers[t + 1] = opened[-1] if opened else IGNORE


def answer_modular(task, row, answers):
    n = task.symbols
    possible = [(w, b) for w in range(n) for b in range(n)]
    for t in range(0, len(row), 2):
        results = {(w * row[t] + b) % n for w, b in possible}
        if len(results) == 1:
            answers[t + 1] = results.pop()
        if t + 1 < len(row):
            possible = [(w, b) for w, b in possible if (w * row[t] + b) % n == row[t + 1]]


def answer_parity(task, row, answers):
    odd = False
    for t, bit in enumerate(row):
        odd = odd != (bit == 1)
        answers[t + 1] = odd


def answer_permutations(task, row, answers):
    state = tuple(range(task.points))
    for t, token in enumerate(row):
        state = tuple(task.permutations[token][i] for i in state)
        answers[t + 1] = task.permutations.index(state)


ANSWERS = {
    Retrieval: answer_retrieval,
    Copy: answer_copy,
    KeysValues: answer_keys_values,
    MQAR: answer_mqar,
    Stack: answer_stack,
    Dyck: answer_dyck,
    Modular: answer_modular,
    Parity: answer_parity,
    Permutations: answer_permutations,
}
