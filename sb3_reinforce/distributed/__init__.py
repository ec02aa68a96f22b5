"""Distributed training with torch.distributed: several processes, one gradient."""
