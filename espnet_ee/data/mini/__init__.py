"""The embedded mini corpus: what it says (``sentences``), how (``voice``), as files (``make``), and read back (``reader``)."""
