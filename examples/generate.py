"""Continue a text, and print it as it is made."""

import sys

import llamagpu

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
llm = llamagpu.load(model)
answer = llm.generate("Once upon a time", max_tokens=64, temperature=0)
for piece in answer:
    print(piece, end="", flush=True)
print(f"\n[{len(answer.tokens)} tokens, ended by {answer.stop_reason}]")
