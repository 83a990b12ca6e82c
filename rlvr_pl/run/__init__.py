"""What a run leaves behind, and how it goes on.

``folder`` and ``comparison`` name every file in a run's folder and in a comparison's, once.
"""
