"""Save a text in the middle, and go on with it later, as if nothing had happened."""

import sys
import tempfile
from pathlib import Path

import llamagpu

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
llm = llamagpu.load(model)
greedy = llamagpu.SamplingParams(temperature=0)
session = llamagpu.Session(llm)
session.add(llm.encode_prompt("Once upon a time"))
print(llamagpu.Answer(session, 16, greedy).text, end=" | ")
with tempfile.TemporaryDirectory() as folder:
    session.save(Path(folder) / "story")
    later = llamagpu.Session.load(llm, Path(folder) / "story")
print(llamagpu.Answer(later, 16, greedy).text)
