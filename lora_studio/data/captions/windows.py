"""How many windows of the text encoders a recipe lets a caption fill."""

MOST_CHUNKS = 10


def one_more(chunks: int) -> str:
    """The setting that allows one window more than `chunks`; empty if a recipe may not ask for that."""
    return f"data.max_token_chunks = {chunks + 1}" if chunks < MOST_CHUNKS else ""
