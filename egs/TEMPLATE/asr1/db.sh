#!/usr/bin/env bash
# Where the corpora are. Set a path here, in the environment (AN4=/corpora/an4 ./run.sh), or through the recipe's options.
# CMU AN4 in NIST SPHERE format, unpacked: the folder that holds etc/ and wav/. Free: http://www.speech.cs.cmu.edu/databases/an4/
export AN4=${AN4:-}
# LibriSpeech, unpacked: the folder LibriSpeech or the one that holds it. Free: https://www.openslr.org/12
export LIBRISPEECH=${LIBRISPEECH:-}
# TED-LIUM releases 3 and 2, unpacked: the folder of the release or the one that holds it. Free: https://www.openslr.org/51, /19
export TEDLIUM3=${TEDLIUM3:-}
export TEDLIUM2=${TEDLIUM2:-}
# VoxPopuli, as its own tools leave it: the folder that holds transcribed_data/. Free: https://github.com/facebookresearch/voxpopuli
export VOXPOPULI=${VOXPOPULI:-}
