"""The composition roots behind train.py and eval.py: the only place where every part meets.

A job takes the composed config, builds typed configs from it, refuses what does not fit, and runs.
"""
