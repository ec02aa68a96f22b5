"""The command ``sb3-reinforce compare``: compare REINFORCE with other algorithms of RL Zoo in one report."""
