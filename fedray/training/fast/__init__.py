"""What makes local training on a CPU faster; results differ from torch's by rounding at most, unless the user asks for bfloat16."""
