"""One run on several processes, by PyTorch's own means: `torchrun --nproc-per-node 2 -m utils train`."""
