"""From a batch of whole episodes to new parameters."""
