"""Commands: one argparse file each, one call each."""
