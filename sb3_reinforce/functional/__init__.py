"""The mathematics as pure functions on arrays and tensors; imports neither SB3 nor the rest of the package."""
