"""The command ``espnet-ee``: one parser, one call each."""
