"""A card that is not there: a cell's real code runs with host tensors real and device tensors on ``meta``; events come out."""
