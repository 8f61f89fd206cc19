"""The margins in other libraries' training: one module per library, which imports nothing of that library.

:mod:`.sentence_transformers`: losses for its ``SentenceTransformerTrainer``.
"""
