"""What keys and values of 8 bits cost: the same model both ways, over the same text."""

import sys

import llamagpu
from llamagpu.perplexity import compare, windows

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
full, small = llamagpu.load(model), llamagpu.load(model, kv_bits=8)
text = "Once upon a time, in a sunny valley, there lived a girl named Mia. Mia loved to sing. She had one wish."
found = compare(full, small, windows(full.tokenizer, text, full.context, full.context // 2))
print(f"perplexity {found.a.perplexity:.3f} with 16 bits, {found.b.perplexity:.3f} with 8")
print(f"KL divergence {found.kl:.1e} nats a token; the same most likely token: {found.same_top:.1%}")
