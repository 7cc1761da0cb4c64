"""Hand-compiled transformers whose circuits are known exactly, in our own GPT-2 class.

`compiler.py` turns named features into weights. The models: `gates.py` (AND, OR, XOR of what heads
find), `induction.py` (a previous-token and an induction head), `programs.py` (reverse, and the
fraction of tokens that were x), `linear.py` (a net that is linear throughout).

Names of nodes: senders are "embed", "a1.0" (head 0 of block 1), "m0" (the MLP of block 0);
receivers are "a1.0.q", "a1.0.k", "a1.0.v", "m0", "logits".
"""
