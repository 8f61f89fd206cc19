"""The formulas: tensors in, tensors out, nothing but torch."""
