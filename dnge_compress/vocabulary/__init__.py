"""Tokens that are never used leave embedding, head and tokenizer together; what stays keeps its every number."""
