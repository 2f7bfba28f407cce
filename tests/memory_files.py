"""A process that saves a memory again and again, to be killed at any moment: python -m tests.memory_files FILE.

Each save is after one more token, and its number is told on stdout once it is done.
"""

from __future__ import annotations

import sys

import llamagpu
from llamagpu.generation import Answer
from llamagpu.llm import LLM
from llamagpu.memory import Memory
from llamagpu.sampling import SamplingParams
from llamagpu.session import Session

WARM = SamplingParams(1.0, 0, 1.0, 0.0, 1.1, seed=3)


def begin(llm: LLM) -> Session:
    session = Session(llm)
    session.add(llm.tokenizer.encode("Once upon a time"))
    return session


def main(path: str) -> None:
    llm, memory = llamagpu.load("demo", device="cpu"), Memory(path)
    session = memory.load(llm)[0] if memory.exists() else begin(llm)
    while session.length < 180:  # the story ends at 195
        "".join(Answer(session, 1, WARM))
        memory.save(session)
        print(session.length, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
