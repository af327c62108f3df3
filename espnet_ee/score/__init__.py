"""WER, replay, curve and report: plain Python on the files a decoding left."""
