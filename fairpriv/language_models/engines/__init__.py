"""Responses, likelihoods, perplexity and tasks of lm-evaluation-harness."""
