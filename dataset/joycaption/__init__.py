"""JoyCaption: exact prompts, the model through transformers, and its download."""
