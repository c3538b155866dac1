"""The text room: documents → tokens → batches.

`documents.py` reads people's files, `tokenizers.py` turns text into ids and back (`vocabularies.py` makes new
tokenizers, `encoders.py` holds the fast paths), `shards.py` keeps a tokenized corpus on disk (`streams.py` has the
formats), and `batches.py` deals it out to the trainer, in windows (`windows.py`) or in pairs (`pairs.py`). Nothing here
imports torch.
"""
