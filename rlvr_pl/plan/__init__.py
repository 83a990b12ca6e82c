"""What a run needs, before it has a GPU: memory, disk, arithmetic, time.

::

    settings.py   a configuration of ``fit``, and the policy's config.json, as what the others ask for
    work.py       tokens and floating-point operations of a rollout, and the time that they take
    storage.py    files, and the host's memory
    advice.py     what to change where a device has less memory
    command.py    the page
"""
