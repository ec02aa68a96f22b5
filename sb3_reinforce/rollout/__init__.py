"""From the environment to a batch of whole episodes."""
