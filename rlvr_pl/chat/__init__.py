"""``python -m rlvr_pl chat``: a policy's answers in the terminal, as they are written."""
