"""The studio: a local page and a REST API on the functions of the command line, without a logic of its own.

Nothing in here imports torch: what needs it runs as a job of the queue or in a process of its own.
"""
