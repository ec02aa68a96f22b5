"""The policies that act: SB3's and sb3-contrib's, with an optional critic, action masks and averaging."""
