"""Influence per byte: what an encoding of so many bytes keeps, on the corpora and models of the fact-tracing benchmark."""
