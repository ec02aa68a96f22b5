"""The command ``sb3-reinforce compare``: REINFORCE beside other algorithms of RL Zoo, in one report."""
