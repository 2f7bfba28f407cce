"""Answer a conversation. (The built-in model only knows little stories; a chat model answers questions.)"""

import sys

import llamagpu

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
llm = llamagpu.load(model)
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of a fox."}]
answer = llm.chat(messages, max_tokens=64, temperature=0)
for piece in answer:
    print(piece, end="", flush=True)
print(f"\n[ended by {answer.stop_reason}]")
messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then?"}]
print(llm.chat(messages, max_tokens=64, temperature=0).text)
