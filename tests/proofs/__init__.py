"""What must not happen to a run, tried at random, many times: python -m tests.proofs NAME [--n N] [--seed SEED]."""
