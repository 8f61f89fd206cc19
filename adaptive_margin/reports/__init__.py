"""What reports are made of: one page in one style, its tables, and its charts.

Only :mod:`adaptive_margin.emotion.report`, :mod:`adaptive_margin.dml.report` and :mod:`adaptive_margin.suggestion` use
it. What comes from a run passes
through ``markupsafe``, so that no text becomes markup. Needs the extra ``train``.
"""
