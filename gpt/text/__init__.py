"""The text room: documents → tokens → batches.

`documents.py` reads people's files, `tokenizers.py` turns text into ids and back (`vocabularies.py` makes new
tokenizers, `encoders.py` holds the fast paths), `shards.py` keeps a tokenized corpus on disk, and `batches.py`
deals it out to the trainer. Nothing here imports torch.
"""
