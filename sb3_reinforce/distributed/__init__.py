"""Training in several processes with one gradient, by torch.distributed."""
