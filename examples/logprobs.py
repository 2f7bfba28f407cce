"""Show how sure the model is of each token, and what else it might have said."""

import math
import sys

import llamagpu

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
answer = llamagpu.load(model).generate("Once upon a time", max_tokens=8, temperature=0, logprobs=3)
print(answer.text)
for row in answer.logprobs or []:
    others = ", ".join(f"{other['token']!r} {math.exp(other['logprob']):.1%}" for other in row["top"])
    print(f"{row['token']!r:>12} {math.exp(row['logprob']):6.1%}   of {others}")
