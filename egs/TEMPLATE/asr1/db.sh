#!/usr/bin/env bash
# Where the corpora are. Set a path here, in the environment (AN4=/corpora/an4 ./run.sh), or through the recipe's options.
# CMU AN4 in NIST SPHERE format, unpacked: the folder that holds etc/ and wav/. Free: http://www.speech.cs.cmu.edu/databases/an4/
export AN4=${AN4:-}
